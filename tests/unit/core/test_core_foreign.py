# SPDX-License-Identifier: Apache-2.0
"""Models of other tools: each error names what it is and the call that gives plain weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pyquant
from pyquant import Policy
from pyquant.errors import CalibrationError, InputError, ModelError, PhaseError, UnknownModuleError
from pyquant.wrap import foreign

W8A8 = Policy.preset("w8a8")


def model() -> nn.Module:
    return nn.Linear(8, 4)


def lora() -> Any:
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    return peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"]))


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "compiled": (lambda: torch.compile(model(), backend="eager"), r"compiled by torch.compile .*pass model._orig_mod"),
    "data_parallel": (lambda: nn.DataParallel(model()), r"several devices \(DataParallel\).*pass model.module"),
    "lora": (lora, r"a LoRA / PEFT adapter .*model.merge_and_unload\(\)"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_says_how_to_unwrap_it(name: str) -> None:
    build, words = WRAPPED[name]
    with pytest.raises(UnknownModuleError, match=words):
        pyquant.prepare(build(), W8A8)


def test_a_wrapped_tree_says_how_to_unwrap_it() -> None:
    q = pyquant.prepare(model(), W8A8)
    for wrapped, words in ((torch.compile(q, backend="eager"), "_orig_mod"), (nn.DataParallel(q), r"model\.module")):
        with pytest.raises(PhaseError, match=f"calibrate takes the tree that pyquant.prepare returned, but .*{words}"):
            pyquant.calibrate(wrapped, [torch.zeros(1, 8)])
        with pytest.raises(PhaseError, match=f"save_quantized takes a converted tree, but .*{words}"):
            pyquant.save_quantized(wrapped, "unused")


def of(module: str, name: str, base: type = nn.Module) -> type:
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        (
            "bitsandbytes.nn.modules",
            "Linear4bit",
            r"\(bitsandbytes: Linear4bit\).*or turn its weights back with model.dequantize",
        ),
        ("gptqmodel.nn_modules.qlinear.torch", "TorchQuantLinear", r"\(GPTQ: "),
        ("gptqmodel.nn_modules.qlinear.gemm_awq", "AwqGEMMQuantLinear", r"\(AWQ: "),
        ("awq.modules.linear.gemm", "WQLinear_GEMM", r"\(AWQ: "),
        ("compressed_tensors.linear.compressed_linear", "CompressedLinear", r"\(compressed-tensors: "),
        ("transformers.integrations.finegrained_fp8", "FP8Linear", r"\(FP8: "),
        ("optimum.quanto.nn.qlinear", "QLinear", r"\(quanto: "),
        ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel", "pass model.module"),
        ("torch.nn.parallel.distributed", "DistributedDataParallel", "pass model.module"),
    ],
)
def test_a_module_of_another_tool_is_named_with_its_place(module: str, name: str, words: str) -> None:
    advice = foreign.advice(of(module, name), "layers.0.q_proj")
    assert advice is not None
    assert advice.startswith("module 'layers.0.q_proj' is ")
    assert __import__("re").search(words, advice), advice


def test_plain_modules_are_nobodys() -> None:
    for cls in (nn.Linear, nn.Embedding, nn.MultiheadAttention, of("transformers.models.x", "Linear")):
        assert foreign.advice(cls) is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8], ids=str)
def test_weights_that_are_stored_in_a_quantized_format(dtype: torch.dtype) -> None:
    fp = nn.Sequential(model())
    fp[0].weight = nn.Parameter(torch.zeros(4, 8).to(dtype), requires_grad=False)
    form = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=f"'0.weight' is stored as {form}, a quantized format; load the unquantized"):
        pyquant.prepare(fp, W8A8)


def test_weights_of_a_tools_own_class() -> None:
    cls = of("torchao.dtypes.affine", "AffineQuantizedTensor", torch.Tensor)
    fp = model()
    fp.weight = nn.Parameter(torch.zeros(4, 8).as_subclass(cls), requires_grad=False)
    with pytest.raises(ModelError, match=r"'weight' is quantized already \(torchao: AffineQuantizedTensor\)"):
        pyquant.prepare(fp, W8A8)


def test_a_float16_model_that_overflows_by_itself() -> None:
    fp = nn.Linear(8, 4).half()
    with torch.no_grad():
        fp.weight.fill_(6e4)
    words = r"batch 0 made NaN or Inf, first at site .*float16, whose largest value is 65504.*bfloat16 or float32"
    with pytest.raises(CalibrationError, match=words):
        pyquant.calibrate(pyquant.prepare(fp, W8A8), [torch.ones(2, 8).half()], progress=False)
    bad = torch.full((2, 8), float("inf")).half()
    with pytest.raises(CalibrationError, match="repair or leave out that batch"):
        pyquant.calibrate(pyquant.prepare(fp, W8A8), [bad], progress=False)
    wide = copy.deepcopy(fp).float()
    pyquant.calibrate(pyquant.prepare(wide, W8A8), [torch.ones(2, 8)], progress=False)


@pytest.mark.parametrize("bad", [10, 999, -1])
def test_an_id_past_the_vocabulary(bad: int) -> None:
    words = rf"id {bad} at position \[1, 2\] is no row of the table, which has 10 \(ids 0 to 9\)"
    ids = torch.zeros(2, 3, dtype=torch.long)
    ids[1, 2] = bad
    q = pyquant.prepare(nn.Embedding(10, 4), W8A8)
    with pytest.raises(CalibrationError, match=f"batch 0: .*InputError: {words}"):
        pyquant.calibrate(q, [ids], progress=False)
    q = pyquant.prepare(nn.Embedding(10, 4), W8A8)
    pyquant.calibrate(q, [ids.abs() % 10], progress=False)
    pyquant.convert(q)
    with pytest.raises(InputError, match=words):
        q(ids)
