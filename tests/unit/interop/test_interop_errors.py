# SPDX-License-Identifier: Apache-2.0
"""Folders of other tools that cannot be taken: one error each, with the next step; and requantizing by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stored_cases as cases
import torch
from torch import Tensor

import pyquant
from pyquant.errors import ModelError
from pyquant.weight import weights

W8A16 = pyquant.Policy.preset("w8a16")
FIRST = "model.layers.0.self_attn.q_proj"


def pack(folder: Path) -> None:
    cases.compressed(cases.llama(), folder)


def plain(folder: Path) -> None:
    cases.compressed(cases.llama(), folder, packed=False, bits=8)


def gptq(folder: Path) -> None:
    cases.gptq(cases.llama(), folder)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: cases.edit(folder, lambda tensors: tensors.pop(f"{FIRST}.{name}"))


def with_(name: str, value: Tensor) -> Callable[[Path], None]:
    return lambda folder: cases.edit(folder, lambda tensors: tensors.__setitem__(f"{FIRST}.{name}", value))


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: cases.config_of(folder, **changes)


def weights_of(**changes: Any) -> Callable[[Path], None]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", **changes}
    return setting(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})


HOSTILE: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], str]] = {
    "no scales": (pack, without("weight_scale"), r"has no tensor .*q_proj.weight_scale', which has the scales of"),
    "no shape": (pack, without("weight_shape"), r"has no tensor .*q_proj.weight_shape', which has the shape of"),
    "no integers": (pack, without("weight_packed"), r"has no tensor .*q_proj.weight_packed', which has the integers"),
    "no zero points": (pack, weights_of(symmetric=False), r"no tensor .*weight_zero_point', which has the zero points"),
    "scales of another shape": (
        pack,
        with_("weight_scale", torch.ones(3, 1)),
        r"q_proj.weight_scale has shape \(3, 1\), expected \(64, groups\)",
    ),
    "words of another shape": (
        pack,
        with_("weight_packed", torch.zeros(64, 5, dtype=torch.int32)),
        r"is torch.int32 of shape \(64, 5\), expected int32 words of 4-bit integers for a weight of shape \(64, 64\)",
    ),
    "3 bits": (pack, weights_of(num_bits=3), r"has int of 3 bits; pyquant reads integers of 2, 4 and 8 bits: llm-comp"),
    "fp8": (
        plain,
        with_("weight", torch.zeros(64, 64, dtype=torch.float8_e4m3fn)),
        r"is stored as F8_E4M3 beside its scales; pyquant reads integers: llm-compressor with .*strategy=\"channel\"",
    ),
    "float": (plain, with_("weight", torch.zeros(64, 64)), r"is stored as F32 beside .*save_compressed=True"),
    "nvfp4": (pack, setting(format="nvfp4-pack-quantized"), r"format 'nvfp4-pack-quantized' of compressed-tensors"),
    "online rotations": (
        pack,
        setting(transform_config={"config_groups": {"R4": {}}}),
        r"has transforms that the model computes as it runs .*without SpinQuantModifier's R3 and R4",
    ),
    "columns in act-order": (pack, with_("weight_g_idx", torch.zeros(64)), r"actorder=group.*actorder=\"weight\""),
    "gptq without scales": (gptq, without("scales"), r"has no tensor .*q_proj.scales', which has the scales of"),
    "gptq without zero points": (gptq, without("qzeros"), r"has no tensor .*qzeros', which has the zero points of"),
    "gptq of 3 bits": (
        gptq,
        with_("qzeros", torch.zeros(1, 6, dtype=torch.int32)),
        r"q_proj' has 3 bits; pyquant reads 2, 4 and 8: quantize it with bits=4",
    ),
    "gptq scales of another shape": (
        gptq,
        with_("scales", torch.ones(2, 64).half()),
        r"do not fit each other: qweight",
    ),
    "gptq words of another shape": (
        gptq,
        with_("qweight", torch.zeros(7, 64, dtype=torch.int32)),
        r"do not fit each other: qweight \(7, 64\) of 4 bits, 64 inputs",
    ),
    "gptq groups that are not there": (
        gptq,
        with_("g_idx", torch.full((64,), 3, dtype=torch.int32)),
        r"g_idx names groups 3 to 3, and there are 1",
    ),
    "gptq in marlin's format": (gptq, setting(checkpoint_format="marlin"), r"'marlin' of GPTQModel.*format=\"gptq\""),
    "autoround in awq's packing": (
        gptq,
        setting(quant_method="auto-round", packing_format="auto_round:auto_awq"),
        r"packed as 'auto_round:auto_awq'.*export it with `--format auto_round:auto_gptq`",
    ),
    "not quantized at all": (
        gptq,
        lambda folder: cases.edit(folder, drop_quantized),
        r"no tensor of the folder is quantized .*remove it from config.json if this is a float checkpoint",
    ),
    "a scale that is none": (
        pack,
        with_("weight_scale", torch.full((64, 1), float("nan"))),
        r"the stored scales of .*q_proj' have NaN or Inf; repair the checkpoint",
    ),
}


def drop_quantized(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.rpartition(".")[2] in ("qweight", "qzeros", "scales", "g_idx")]:
        del tensors[name]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder(name: str, tmp_path: Path) -> None:
    write, change, words = HOSTILE[name]
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(ModelError, match=words) as error:
        pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    assert "\n" not in str(error.value)


GROUPED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed": (
        lambda to: cases.compressed(cases.llama(), to, group=32),
        r"a scale for every 32 columns.*onert's blocks.*llm-compressor with .*strategy=\"channel\".*--requantize",
    ),
    "gptq": (
        lambda to: cases.gptq(cases.llama(), to, group=32),
        r"a scale for every 32 columns.*GPTQModel with QuantizeConfig\(bits=4, group_size=-1\)",
    ),
    "gptq, act-order": (
        lambda to: cases.gptq(cases.llama(), to, group=32, order=True),
        r"has groups of columns in another order .*desc_act=True",
    ),
    "autoround": (
        lambda to: cases.gptq(
            cases.llama(), to, group=32, method="auto-round", packing="auto_round:auto_gptq", symmetric=False
        ),
        r"a scale for every 32 columns.*auto-round with `--group_size -1`",
    ),
}


@pytest.mark.parametrize("name", GROUPED)
def test_scales_per_group_are_an_error_or_quantized_anew_by_name(name: str, tmp_path: Path) -> None:
    write, words = GROUPED[name]
    truths = write(tmp_path)
    fp: Any = pyquant.interop.load(tmp_path)
    if "act-order" not in name:
        path = "model.layers.0.mlp.down_proj"
        assert torch.equal(fp.get_submodule(path).weight, torch.from_numpy(truths[path].value))
    with pytest.raises(ModelError, match=words):
        pyquant.prepare(fp, W8A16, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="14 weights are quantized anew: each has "):
        q = pyquant.prepare(fp, W8A16, checkpoint=tmp_path, requantize=True)
    assert not any(weight.how for weight in weights(q))


def test_a_model_of_another_checkpoint_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "a")
    fp: Any = pyquant.interop.load(tmp_path / "a")
    with torch.no_grad():
        fp.model.layers[0].self_attn.q_proj.weight.add_(1)
    with pytest.raises(ModelError, match=r"self_attn.q_proj:weight' is not that of .*prepare it without"):
        pyquant.prepare(fp, W8A16, checkpoint=tmp_path / "a")
    with pytest.raises(ModelError, match=r"none of the weights of this model \(the first of its 14 is 'model"):
        pyquant.prepare(torch.nn.Conv2d(3, 3, 1), W8A16, checkpoint=tmp_path / "a")


def test_formats_that_are_not_read_stay_errors(tmp_path: Path) -> None:
    gptq(tmp_path)
    for method, words in (("awq", "AWQ, 4 bits"), ("bitsandbytes", "bitsandbytes, 4 bits"), ("quark", "quark, 4 bits")):
        cases.config_of(tmp_path, quant_method=method)
        with pytest.raises(ModelError, match=rf"quantized already \({words}, .*does not read \(it reads com.*"):
            pyquant.interop.load(tmp_path)


def test_cache_scales_of_another_kind_are_said(tmp_path: Path) -> None:
    cache = {f"model.layers.{layer}.self_attn.{kind}_scale": 0.1 for layer in range(2) for kind in "kv"}
    cases.compressed(cases.llama(), tmp_path, cache=cache)
    cases.config_of(tmp_path, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    with pytest.warns(UserWarning, match="4 scales of the KV cache are float of 8 bits, and are calibrated instead"):
        q: Any = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    assert not q.model.layers[0].self_attn.site("key").decided


def test_scales_of_activations_without_a_scheme_are_said(tmp_path: Path) -> None:
    pack(tmp_path)
    with_("output_scale", torch.tensor([0.1]))(tmp_path)
    with pytest.warns(UserWarning, match="1 scales of activations have no scheme in quantization_config, and are"):
        q: Any = pyquant.prepare(pyquant.interop.load(tmp_path), W8A16, checkpoint=tmp_path)
    assert not q.get_submodule(FIRST).site("act_out").decided


def test_a_head_of_its_own_in_a_tied_config_is_said(tmp_path: Path) -> None:
    def head(tensors: dict[str, Tensor]) -> None:
        for name in ("weight_packed", "weight_scale", "weight_shape"):
            tensors[f"lm_head.{name}"] = tensors[f"{FIRST}.{name}"].clone()

    pack(tmp_path)
    cases.edit(tmp_path, head)
    with pytest.raises(ModelError, match="tie_word_embeddings=true, but the weights have a quantized 'lm_head'"):
        pyquant.interop.load(tmp_path)
