# SPDX-License-Identifier: Apache-2.0
"""Scales per group in ggml's blocks: the checkpoint's integers and scales in the file, in saved trees, and on onert."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_cases as cases
import torch
from numpy.typing import NDArray

import pyquant
from pyquant import circle, ops
from pyquant.block_site import BlockSite
from pyquant.errors import ModelError, PhaseError, PolicyError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.spec import BlockSpec
from pyquant.verify.runtimes import onert
from pyquant.verify.runtimes.onert_expected import expected
from pyquant.weight import weights
from tests.onert_blocks import needs_blocks

IDS = torch.arange(24).reshape(2, 12)
W4 = pyquant.Policy.preset("w4_onert")
AUTO = {"method": "auto-round", "packing": "auto_round:auto_gptq"}

WAYS: dict[str, Callable[[Any, Path], cases.Truths]] = {
    "compressed, 32": lambda fp, to: cases.compressed(fp, to, group=32, scales=torch.float16),
    "compressed, whole rows": lambda fp, to: cases.compressed(fp, to, scales=torch.float16),
    "compressed, 8 bits": lambda fp, to: cases.compressed(fp, to, group=32, bits=8, packed=False, scales=torch.float16),
    "gptq, 32": lambda fp, to: cases.gptq(fp, to, group=32),
    "autoround, negative scales": lambda fp, to: cases.gptq(fp, to, group=32, sign=-1, **AUTO),
}


def blocks_of(truth: cases.Truth) -> bytes:
    """Written from ggml's struct block_q4_0 and block_q8_0: a half, then 32 integers; of 4 bits, j beside j + 16."""
    out = bytearray()
    count = truth.numbers.shape[1] // 32
    for row, scales in zip(truth.numbers, truth.scale, strict=True):
        for number, block in enumerate(row.reshape(count, 32)):
            out += np.float16(scales[number * len(scales) // count]).tobytes()
            if truth.bits == 8:
                out += (block - 128).astype(np.int8).tobytes()
            else:
                out += bytes(int(block[j]) | int(block[j + 16]) << 4 for j in range(16))
    return bytes(out)


def mlp(folder: Path, policy: pyquant.Policy = W4) -> tuple[Any, torch.Tensor]:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    fp: Any = pyquant.interop.load(folder)
    q = pyquant.prepare(fp.model.layers[0].mlp, policy, checkpoint=folder)
    pyquant.calibrate(q, [(x,)], progress=False)
    pyquant.convert(q)
    return q, x


def exported(q: Any, x: torch.Tensor) -> Any:
    return pyquant.export(q, ExportProfile({"x": TensorSpec(tuple(x.shape), torch.float32)}, ("y",)), target="onert")


@pytest.mark.parametrize("way", WAYS)
def test_the_file_has_the_blocks_of_the_checkpoint(way: str, tmp_path: Path) -> None:
    truths = WAYS[way](cases.llama(), tmp_path)
    q, x = mlp(tmp_path)
    fp: Any = pyquant.interop.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(q(x), fp.model.layers[0].mlp(x), rtol=1e-5, atol=1e-5)
    program = exported(q, x)
    program.save(tmp_path / "mlp.circle")
    found = {bytes(t.data): t for t in circle.read(tmp_path / "mlp.circle").tensors if t.data is not None}
    for name in ("gate_proj", "up_proj", "down_proj"):
        truth = truths[f"model.layers.0.mlp.{name}"]
        assert found[blocks_of(truth)].dtype == ("ggml_q8_0" if truth.bits == 8 else "ggml_q4_0")
        weight = q.get_submodule(name).weight
        assert np.array_equal(weight.detach().numpy(), truth.value)


@needs_blocks
@pytest.mark.skipif(sys.platform != "linux" or sys.version_info >= (3, 13), reason="onert 0.1.0 has no wheel here")
def test_onert_computes_with_them(tmp_path: Path) -> None:
    cases.gptq(cases.llama(), tmp_path, group=32)
    q, x = mlp(tmp_path)
    program = exported(q, x)
    got, want = onert.run(program, [x])["y"], expected(program, [x])["y"]
    assert ((got - want).abs() <= 1e-5 * want.abs().amax(-1, keepdim=True).clamp(min=0.1)).all()


def test_saved_loaded_copied_and_cast_they_stay(tmp_path: Path) -> None:
    truths = cases.gptq(cases.llama(), tmp_path / "m", group=32)
    q: Any = pyquant.prepare(pyquant.interop.load(tmp_path / "m"), W4, checkpoint=tmp_path / "m")
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    again: Any = pyquant.load_quantized(tmp_path / "q")
    assert torch.equal(again(input_ids=IDS).logits, q(input_ids=IDS).logits)
    stored = cases.load_file(tmp_path / "q" / "quantized.safetensors")
    for path, truth in truths.items():
        assert stored[f"{path}.weight"].numpy().tobytes() == blocks_of(truth)
        site = again.get_submodule(path).site("weight")
        assert site.blocks.numpy().tobytes() == blocks_of(truth)
        assert site.decided == "stored, in the GPTQ checkpoint"
    assert str(again.policy.explain(again)) == str(q.policy.explain(q))
    assert not any("blocks" in name for name in stored)
    half = again.to(torch.bfloat16)
    assert half.get_submodule(path).site("weight").blocks.dtype == torch.uint8
    assert half.get_submodule(path).site("weight").blocks.numpy().tobytes() == blocks_of(truth)


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zero points": (
        lambda to: cases.gptq(cases.llama(), to, group=32, symmetric=False),
        r"blocks have no zero points.*QuantizeConfig\(..., sym=True\)",
    ),
    "fine scales": (
        lambda to: cases.compressed(cases.llama(), to, group=32),
        "half-precision scales, and its own",
    ),
    "groups of 16": (
        lambda to: cases.gptq(cases.llama(), to, group=16),
        "one scale, and its groups have 16",
    ),
    "act-order": (
        lambda to: cases.gptq(cases.llama(), to, group=32, order=True),
        "lie in another order",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_block_holds(name: str, tmp_path: Path) -> None:
    write, words = UNFIT[name]
    write(tmp_path)
    fp = pyquant.interop.load(tmp_path)
    with pytest.raises(ModelError, match=rf"does not fit into q4_0 blocks: .*{words}.*--requantize"):
        pyquant.prepare(fp, W4, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=r"weights are quantized anew: each does not fit into q4_0 blocks"):
        q = pyquant.prepare(fp, W4, checkpoint=tmp_path, requantize=True)
    assert not any(weight.how for weight in weights(q))


def test_blocks_are_decided_once_and_for_weights(tmp_path: Path) -> None:
    q = pyquant.prepare(torch.nn.Linear(64, 8), pyquant.Policy.preset("w4_onert"))
    (weight,) = weights(q)
    blocks: NDArray[Any] | torch.Tensor = ops.quantize_blocks(torch.randn(8, 64), 4)
    weight.decide_blocks(BlockSpec("q4_0"), blocks, "test")
    assert isinstance(weight.site, BlockSite)
    assert torch.equal(weight.value, ops.dequantize_blocks(blocks, 4))
    with pytest.raises(PhaseError, match=r"is decided already \(test\); decide a weight once"):
        weight.decide_blocks(BlockSpec("q4_0"), blocks, "again")
    (table,) = weights(pyquant.prepare(torch.nn.Embedding(8, 64), W4))
    with pytest.raises(PolicyError, match="the blocks of weights alone can be decided"):
        table.decide_blocks(BlockSpec("q4_0"), blocks, "test")
    (plain,) = weights(pyquant.prepare(torch.nn.Linear(64, 8), pyquant.Policy.preset("w8a16")))
    with pytest.raises(PolicyError, match=r"the policy gives it int8 symmetric .*and no blocks"):
        plain.decide_blocks(BlockSpec("q4_0"), blocks, "test")
