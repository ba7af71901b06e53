# SPDX-License-Identifier: Apache-2.0
"""Rotation: outputs stay as they are in every family that takes it, and what cannot take it is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyquant
from pyquant.algorithms.rotate import rotate
from pyquant.errors import InputError, PhaseError
from pyquant.models import llama as llama_family
from pyquant.models.example import made_up_image, randomize_
from pyquant.models.gemma4 import whole_example as gemma4
from pyquant.models.llama import example as llama
from pyquant.models.qwen3_vl import example as qwen3_vl
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import deep_faults, op_faults
from pyquant.weight import weights
from pyquant.wrap import Phase, phase

torch.set_num_threads(1)


def untied() -> nn.Module:
    fp: Any = llama.tiny_model()
    fp.lm_head.weight = nn.Parameter(fp.lm_head.weight.detach().clone())
    fp.config.tie_word_embeddings = False
    return fp


MAKE = {"llama": llama.tiny_model, "llama-untied": untied, "qwen3_vl": qwen3_vl.tiny_model}
EXAMPLE: dict[str, Any] = {"llama": llama, "llama-untied": llama, "qwen3_vl": qwen3_vl}


def given(family: str) -> tuple[Any, dict[str, Any]]:
    """A model in which no gain is one and no bias zero, and inputs for it: two images, where it takes some."""
    fp = randomize_(MAKE[family](), seed=5)
    assert all(float(p.detach().std()) > 0.01 for p in fp.parameters())
    images = [made_up_image(), made_up_image().flip(0)] if family == "qwen3_vl" else []
    return fp, EXAMPLE[family].example_inputs(fp, images)


def prepared(fp: nn.Module, preset: str = "float") -> Any:
    return pyquant.prepare(fp, pyquant.Policy.preset(preset))


def snapshot(q: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in q.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize(("residual", "heads"), [(True, True), (True, False), (False, True)])
@torch.no_grad()
def test_outputs_stay_as_they_are(family: str, residual: bool, heads: bool) -> None:
    fp, batch = given(family)
    expected, before = fp(**batch).logits, {n: p.clone() for n, p in fp.named_parameters()}
    q = prepared(fp)
    own = snapshot(q)
    rotate(q, residual=residual, heads=heads)
    assert float((q(**batch).logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert all(torch.equal(p, before[n]) for n, p in fp.named_parameters())
    moved = {n for n, p in snapshot(q).items() if not torch.allclose(p, own[n], atol=1e-3)}
    linears = {n for n in own if n.endswith(("v_proj.weight", "o_proj.weight", "qkv.weight", "attn.proj.weight"))}
    if not residual:
        assert moved == linears | {n for n in own if n.endswith("attn.qkv.bias")}
        return
    everything = {n for n in own if "_norm.weight" not in n}  # norms of queries and keys do not read the stream
    inner = {n for n in own if n.endswith(("fc2.bias", "linear_fc1.bias", "merger.norm.bias"))}
    assert everything - inner <= moved
    norms = [m for m in q.all_qmodules() if m.path.endswith(("layernorm", ".norm", "norm1", "norm2"))]
    assert len(norms) == {"qwen3_vl": 7 + 9}.get(family, 7)
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    assert all(norm.bias is None or bool((norm.bias == 0).all()) for norm in norms if hasattr(norm, "bias"))


@torch.no_grad()
def test_channels_are_levelled() -> None:
    """One channel of the stream that is a hundred times the others is spread over all of them."""
    fp, batch = given("llama")
    fp.model.embed_tokens.weight[:, 3] *= 100

    def peak(q: Any) -> float:
        seen = []
        q.model.norm.site("act_in").tap(lambda site, x, out, **_: seen.append(x))
        q(**batch)
        return float((seen[0].abs().amax(-1) / seen[0].square().mean(-1).sqrt()).mean())

    q = prepared(fp)
    before = peak(q)
    rotate(q)
    assert before > 4
    assert peak(q) < before / 1.5


def test_a_seed_is_a_result() -> None:
    fp, _ = given("llama")
    first, second, other = prepared(fp), prepared(fp), prepared(fp)
    rotate(first)
    rotate(second)
    rotate(other, seed=1)
    assert all(torch.equal(p, snapshot(second)[n]) for n, p in snapshot(first).items())
    name = "model.embed_tokens.weight"
    assert not torch.equal(snapshot(first)[name], snapshot(other)[name])


@torch.no_grad()
def test_one_tower_alone() -> None:
    fp, batch = given("qwen3_vl")
    q = prepared(fp)
    own = snapshot(q)
    rotate(q, towers=["model.visual"])
    out = q(**batch).logits
    expected = fp(**batch).logits
    assert float((out - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    moved = {n for n, p in snapshot(q).items() if not torch.equal(p, own[n])}
    assert moved
    assert all(n.startswith("model.visual.") for n in moved)


@torch.no_grad()
def test_bfloat16_weights_are_rounded_once() -> None:
    fp, _ = given("llama")
    q, exact = prepared(copy.deepcopy(fp).bfloat16()), prepared(copy.deepcopy(fp).bfloat16().float())
    rotate(q)
    rotate(exact)
    for name, value in snapshot(q).items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, snapshot(exact)[name].bfloat16()), name


@pytest.mark.parametrize("preset", ["w8a16", "w4a16"])
@torch.no_grad()
def test_a_saved_rotated_tree_loads_bit_identically(preset: str, tmp_path: Path) -> None:
    """Untied, although the config says that the head is the token table."""
    fp, batch = given("llama")
    assert fp.config.tie_word_embeddings
    q = prepared(fp, preset)
    rotate(q)
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    expected = q(**batch).logits
    assert torch.equal(pyquant.load_quantized(tmp_path / "q")(**batch).logits, expected)
    again = pyquant.load_quantized(tmp_path / "q", fp)
    assert torch.equal(again(**batch).logits, expected)
    assert fp.lm_head.weight is fp.model.embed_tokens.weight
    pyquant.save_quantized(again, tmp_path / "again")
    one, two = (tmp_path / name / "quantized.safetensors" for name in ("q", "again"))
    assert one.read_bytes() == two.read_bytes()


@torch.no_grad()
def test_the_files_of_a_rotated_tree_are_its_simulation(tmp_path: Path) -> None:
    fp, batch = given("llama")
    q = prepared(fp, "w8a16")
    rotate(q)
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    programs = pyquant.export_bundle(q, tmp_path / "b", llama_family.Profile(max_seq_len=16, prefill_lengths=(13,)))
    seen: dict[str, dict[str, torch.Tensor]] = {}
    with Session(tmp_path / "b", runtime="tico") as session:

        def run(name: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            seen[name] = inputs
            return session.run(name, inputs)

        tokens = session.host.generate(run, batch["input_ids"], max_new_tokens=3)
    assert torch.equal(tokens, q.generate(batch["input_ids"], max_new_tokens=3, do_sample=False))
    for name, inputs in seen.items():
        program = programs[name]
        assert program.missing_qparams() == []
        report = compare(program, None, inputs)
        assert op_faults(report) == [], name
        with phase(q, Phase.FLOAT):
            out = program.adapter(*(inputs[key] for key in program.adapter.input_specs))
        flat = out if isinstance(out, tuple) else (out,)
        reference = dict(zip(program.adapter.output_names, flat, strict=True))
        assert deep_faults(program, None, inputs, reference, report) == [], name


# --- what cannot be ---


@torch.no_grad()
def test_gemma4_names_the_norms_after_its_linears() -> None:
    fp = gemma4.tiny_model()
    q = prepared(fp)
    own = snapshot(q)
    expected = r"'model.language_model' cannot be rotated: 'model.language_model.layers.0.post_attention_layernorm'"
    with pytest.raises(InputError, match=expected + r".*algorithms\.smooth"):
        rotate(q)
    assert all(torch.equal(p, own[n]) for n, p in snapshot(q).items())


def test_a_model_without_its_head_is_refused() -> None:
    fp, _ = given("llama")
    q = prepared(fp.model)
    with pytest.raises(
        InputError, match=r"the residual stream of the model cannot.*'norm' of .*needs its head in the tree"
    ):
        rotate(q)
    rotate(q, residual=False)


def test_towers_are_paths_of_streams() -> None:
    fp, _ = given("qwen3_vl")
    q = prepared(fp)
    with pytest.raises(InputError, match=r"no residual stream at 'visual'.*'model.visual', 'model.language_model'"):
        rotate(q, towers=["visual"])
    with pytest.raises(InputError, match=r"write \['model.visual'\]"):
        rotate(q, towers="model.visual")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rotates nothing; leave the step out"):
        rotate(q, residual=False, heads=False)


def test_a_linear_alone_has_nothing_to_rotate() -> None:
    q = prepared(nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"no residual stream.*residual=False"):
        rotate(q)
    with pytest.raises(InputError, match="nothing to rotate in this QuantLinear"):
        rotate(q, residual=False)


def test_it_comes_before_calibration_and_before_decisions() -> None:
    fp, batch = given("llama")
    q = prepared(fp, "w8a16")
    with pytest.raises(PhaseError, match="got its part 'model'"):
        rotate(q.model)
    weight = list(weights(q))[-1]  # the head: the other weights would have been changed before it
    weight.decide(weight.site.compute_qparams(), "test")
    own = snapshot(q)
    with pytest.raises(PhaseError, match=r"'lm_head.weight' is decided \(test\)"):
        rotate(q)
    assert all(torch.equal(p, own[n]) for n, p in snapshot(q).items())
    late = prepared(fp, "w8a16")
    pyquant.calibrate(late, [batch], progress=False)
    with pytest.raises(PhaseError, match=r"before pyquant.calibrate"):
        rotate(late)
    pyquant.convert(late)
    with pytest.raises(PhaseError, match="rotate before the tree is ready"):
        rotate(late)
    with pytest.raises(PhaseError, match="got LlamaForCausalLM"):
        rotate(fp)


def test_a_damaged_weight_is_named_before_it_spreads() -> None:
    fp = llama.tiny_model()
    fp.model.norm.weight.data[3] = torch.nan
    with pytest.raises(InputError, match=r"'model.norm.weight' has NaN or infinite values, which folding would carry"):
        rotate(pyquant.prepare(fp, pyquant.Policy.preset("w8a8")))
