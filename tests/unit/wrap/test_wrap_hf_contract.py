# SPDX-License-Identifier: Apache-2.0
"""The contract with transformers: a release that differs in what wrappers copy is an error before anything is computed.

The differences are made here, on the installed release, one at a time: what a next release may bring.
"""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import cache_utils, masking_utils
from transformers.activations import ACT2FN
from transformers.models.qwen3_vl import modeling_qwen3_vl as hf

import pyquant
from pyquant import models
from pyquant.errors import CompatibilityError
from pyquant.wrap import hf_contract, hf_facts, hf_records
from tests import contracts

W8A8 = pyquant.Policy.preset("w8a8")


@pytest.fixture(scope="module")
def fp() -> nn.Module:
    return models.by_name("qwen3_vl").example.tiny_model()


def refused(fp: nn.Module, *parts: str) -> None:
    """prepare refuses, in one line that has `parts`, the range of releases and the way around it."""
    with pytest.raises(CompatibilityError) as error:
        pyquant.prepare(fp, W8A8)
    message = str(error.value)
    assert "\n" not in message
    for part in (*parts, f"a release from {hf_records.supported()}", f"{hf_contract.OVERRIDE}=1"):
        assert part in message, message


def test_the_installed_release_is_recorded() -> None:
    assert contracts.mismatches() == []


def test_a_process_that_compiled_something_has_the_same_release() -> None:
    """torch.compile replaces nn.Module.__init__, which activations of transformers inherit."""
    silu = type(ACT2FN["silu"])
    before = hf_facts.facts(silu)
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    assert "patched_init" in silu.__init__.__qualname__
    assert hf_facts.facts(silu) == before
    assert hf_contract.mismatches(silu) == []


def test_every_class_has_all_aspects_in_the_newest_release() -> None:
    for cls in contracts.classes():
        recorded = hf_records.records(hf_records.home(cls))[cls.__name__]
        assert recorded.keys() == hf_facts.facts(cls).keys(), cls


# --- what a next release may change ---


def test_a_renamed_keyword(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(
        self: Any,
        hidden_states: Any,
        position_embeddings: Any,
        attention_mask: Any,
        kv_store: Any = None,
        **kwargs: Any,
    ) -> None:
        """As 5.24 renamed past_key_values to cache: ours would swallow the new name, and see no past."""

    newest = hf_facts.CACHE_NAMES[0]
    monkeypatch.setattr(hf.Qwen3VLTextAttention, "forward", forward)
    refused(
        fp,
        f"Qwen3VLTextAttention.forward takes 'kv_store', which no recorded release has and no longer takes {newest!r}",
        "more, listed by `make contracts`",
    )
    assert (
        "Qwen3VLTextAttention.forward takes 'kv_store', which QuantQwen3VLTextAttention does not have"
        in hf_contract.mismatches(hf.Qwen3VLTextAttention)
    )


def test_a_new_parameter(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor, scale: float = 2.0) -> None: ...

    monkeypatch.setattr(hf.Qwen3VLTextMLP, "forward", forward)
    refused(fp, "Qwen3VLTextMLP.forward takes 'scale', which no recorded release has")


def test_another_default(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = hf.Qwen3VLForConditionalGeneration
    parameters = hf_facts.signature(cls.forward).replace("logits_to_keep=0", "logits_to_keep=1")
    space: dict[str, Any] = {}
    exec(f"def forward(self, {parameters}): pass", space)
    monkeypatch.setattr(cls, "forward", space["forward"])
    found = hf_contract.mismatches(cls)
    assert found[0] == (
        "Qwen3VLForConditionalGeneration.forward has other defaults: logits_to_keep is 'logits_to_keep=1', was "
        "'logits_to_keep=0'"
    )


def test_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = hf.Qwen3VLVisionRotaryEmbedding

    def forward(self: Any, position_ids: Tensor, x: Tensor) -> None: ...

    monkeypatch.setattr(cls, "forward", forward)
    found = hf_contract.mismatches(cls)
    if "x" not in hf_facts.signature(cls.forward):  # old releases build their tables from a length
        assert found
    else:
        assert found[0].endswith("forward takes its parameters in another order: position_ids, x")


def output(fp_class: type, names: list[str]) -> type:
    """The output class of `fp_class` with other fields."""
    old = hf_facts.output_class(fp_class)
    assert old is not None
    return dataclasses.make_dataclass(old.__name__, [(name, Any, None) for name in names])


@pytest.mark.parametrize("change", ["gains", "loses"])
def test_an_output_class_with_other_fields(fp: nn.Module, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    old = hf_facts.output_class(hf.Qwen3VLTextModel)
    assert old is not None
    names = [field.name for field in dataclasses.fields(old)]
    names = [*names, "position_ids"] if change == "gains" else names[:-1]
    monkeypatch.setattr(hf, old.__name__, output(hf.Qwen3VLTextModel, names))
    refused(fp)
    (line,) = hf_contract.mismatches(hf.Qwen3VLTextModel)
    assert line.startswith(
        f"Qwen3VLTextModel.forward returns {old.__name__}({', '.join(names)}), expected {old.__name__}("
    )


def test_a_cache_whose_update_takes_something_else(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Any, key_states: Tensor, value_states: Tensor, positions: Tensor, layer_idx: int) -> Any: ...

    monkeypatch.setattr(cache_utils.Cache, "update", update)
    refused(
        fp,
        "Cache.update of transformers.cache_utils takes (key_states, value_states, positions, layer_idx), expected "
        "(key_states, value_states, layer_idx, ",
    )


def test_a_cache_whose_update_computes_something_else(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = cache_utils.DynamicLayer
    parameters = hf_facts.signature(cls.update)
    space: dict[str, Any] = {}
    exec(f"def update(self, {parameters}): return key_states, value_states", space)
    space["update"].__module__ = cls.__module__
    monkeypatch.setattr(cls, "update", space["update"])
    refused(fp, "DynamicLayer.update of transformers.cache_utils computes in another way than in any recorded release")


def test_a_vision_tower_does_not_ask_about_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cache_utils.Cache, "update")
    assert hf_contract.cache_mismatches() == ["Cache.update of transformers.cache_utils does not exist"]
    pyquant.prepare(models.by_name("gemma4").example.tiny_model(), W8A8)


def test_other_arithmetic(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """The same parameters, and a gain of 1 + weight, as Gemma's norms once had."""
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return (1 + self.weight) * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    monkeypatch.setattr(hf.Qwen3VLTextRMSNorm, "forward", forward)
    refused(
        fp, "Qwen3VLTextRMSNorm.forward or __init__ (or what they call) computes in another way than in any recorded"
    )


def test_another_helper_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate_half(x: Tensor) -> Tensor:
        return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)

    rotate_half.__module__ = hf.__name__
    before = hf_contract.mismatches(hf.Qwen3VLTextAttention)
    monkeypatch.setattr(hf, "rotate_half", rotate_half)
    hf_contract._COMPARED.clear()
    after = hf_contract.mismatches(hf.Qwen3VLTextAttention)
    hf_contract._COMPARED.clear()
    assert before == []
    assert after == [
        "Qwen3VLTextAttention.forward or __init__ (or what they call) computes in another way than in any recorded "
        "release"
    ]


def test_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_causal_mask(*args: Any, **kwargs: Any) -> None: ...

    create_causal_mask.__module__ = masking_utils.__name__
    monkeypatch.setattr(hf, "create_causal_mask", create_causal_mask)
    hf_contract._COMPARED.clear()
    found = hf_contract.mismatches(hf.Qwen3VLTextModel)
    hf_contract._COMPARED.clear()
    assert found == [
        "Qwen3VLTextModel.forward builds its attention mask by code that is none of the recorded releases'"
    ]


def test_a_new_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, config: Any, layer_idx: int) -> None:  # noqa: N807
        self.config, self.layer_idx = config, layer_idx
        self.sinks = nn.Parameter(torch.zeros(8))

    monkeypatch.setattr(hf.Qwen3VLTextDecoderLayer, "__init__", __init__)
    lines = hf_contract.mismatches(hf.Qwen3VLTextDecoderLayer)
    assert lines[0].startswith(
        "Qwen3VLTextDecoderLayer.__init__ sets 'config', 'layer_idx', 'sinks', which no recorded"
    )
    assert "and no longer sets 'hidden_size', 'input_layernorm'" in lines[0]


# --- who is asked, and who is not ---


def test_the_override_warns(fp: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor, scale: float = 2.0) -> None: ...

    monkeypatch.setattr(hf.Qwen3VLTextMLP, "forward", forward)
    monkeypatch.setenv(hf_contract.OVERRIDE, "1")
    with pytest.warns(
        UserWarning, match=r"Qwen3VLTextMLP.forward takes 'scale'.*=1 is set, so it is used all the same"
    ):
        pyquant.prepare(fp, W8A8)
    monkeypatch.setenv(hf_contract.OVERRIDE, "0")
    refused(fp, "takes 'scale'")


def test_a_known_release_says_nothing(fp: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyquant.prepare(fp, W8A8)


@pytest.mark.parametrize("name", ["silu", "gelu_new", "linear"])
def test_a_compiled_model_before_changes_nothing(name: str) -> None:
    """torch.compile replaces nn.Module.__init__ for the process; `prepare` then refused every model with a SiLU."""
    act = ACT2FN[name]
    before = hf_facts.facts(type(act))
    torch.compile(nn.Sequential(act), backend="eager")(torch.zeros(2, 3))
    assert hf_facts.facts(type(act)) == before
    pyquant.prepare(act, W8A8)


def test_a_wrapper_of_a_user_has_no_contract() -> None:
    fake: Any = type("Mine", (nn.Linear,), {"__module__": "transformers.models.mine.modeling_mine"})
    assert not hf_contract.has_contract(fake)
    assert not hf_contract.has_contract(nn.Linear)


def test_a_class_that_was_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    records = dict(hf_records.records(hf_records.home(hf.Qwen3VLTextMLP)))
    del records["Qwen3VLTextMLP"]
    monkeypatch.setattr(hf_records, "records", lambda path: records)
    hf_contract._COMPARED.clear()
    found = hf_contract.mismatches(hf.Qwen3VLTextMLP)
    hf_contract._COMPARED.clear()
    assert found == ["Qwen3VLTextMLP has no record in pyquant/models/qwen3_vl/contract.json"]


# --- facts ---


def reformatted(function: Callable[..., Any]) -> str:
    return hf_facts._parsed(function)[0]  # type: ignore[arg-type]


def test_layout_annotations_and_docstrings_are_no_code() -> None:
    def plain(x, y=1):  # type: ignore[no-untyped-def]
        return x + y

    renamed = types.FunctionType(plain.__code__, plain.__globals__)
    assert reformatted(plain) == reformatted(renamed)

    def spaced(x: Tensor, y: int = 1) -> Tensor:
        """Words."""
        # and more words
        return x + (y)

    assert reformatted(plain).replace("'plain'", "'spaced'") == reformatted(spaced)


def test_records_of_several_releases_are_merged_and_unfolded() -> None:
    by_release: dict[str, Any] = {
        "5.10.0": {"A": {"forward": "x", "output": None}},
        "5.9.0": {"A": {"forward": "x", "output": "O(a)"}},
        "5.11.0": {"A": {"forward": "x, y=1", "output": None}, "B": {"forward": "z"}},
    }
    merged = contracts.merged(by_release)
    assert merged == {
        "releases": ["5.9.0", "5.10.0", "5.11.0"],
        "classes": {
            "A": {"forward": {"5.9.0": "x", "5.11.0": "x, y=1"}, "output": {"5.9.0": "O(a)", "5.10.0": None}},
            "B": {"forward": {"5.11.0": "z"}},
        },
    }
    assert contracts.unfolded(merged) == by_release
