# SPDX-License-Identifier: Apache-2.0
"""A model on a GPU: the operators' bits are those of the CPU, and a tree goes from prepare to a file.

On machines without one these are skipped; so far no machine of ours had one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import ops
from pyquant.models.llama import example as llama
from pyquant.ops import backends, cuda, reference, reference_search
from pyquant.weight import weights
from tests import checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]
DEVICE = "cuda"


def values(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 64, generator=generator) * 4
    x[0, :6] = torch.tensor([0.5, -0.5, 1.5, -2.5, float("nan"), float("inf")])
    return x.to(dtype)


def same_bits(one: Tensor, other: Tensor) -> None:
    assert torch.equal(one.nan_to_num(12345.0), other.cpu().nan_to_num(12345.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("axis", "group"), [(None, 0), (0, 0), (1, 0), (1, 32)])
def test_rounding_and_ranges_have_the_bits_of_the_cpu(dtype: torch.dtype, axis: int | None, group: int) -> None:
    x = values(dtype)
    lo, hi = ops.minmax(x, axis, group)
    for one, other in zip((lo, hi), ops.minmax(x.to(DEVICE), axis, group), strict=True):
        same_bits(one, other)
    scale, zero_point = ops.choose_qparams(lo, hi, 0, 255, False)
    on_device = ops.choose_qparams(lo.to(DEVICE), hi.to(DEVICE), 0, 255, False)
    same_bits(scale, on_device[0])
    same_bits(zero_point, on_device[1])
    args = (axis, group, 0, 255)
    same_bits(ops.fake_quantize(x, scale, zero_point, *args), ops.fake_quantize(x.to(DEVICE), *on_device, *args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_histograms_have_the_counts_of_the_cpu(dtype: torch.dtype) -> None:
    found = []
    for device in ("cpu", DEVICE):
        counts = torch.zeros(2048, dtype=torch.int64, device=device)
        edges = torch.tensor([torch.inf, -torch.inf], device=device)
        count = torch.zeros(2, dtype=torch.int64, device=device)
        for piece in values(dtype).chunk(4):
            ops.observe_histogram_(counts, edges, count, piece.to(device))
        found.append((counts, edges, count))
    for one, other in zip(*found, strict=True):
        same_bits(one, other)


def test_triton_kernels_have_the_bits_of_the_cpu() -> None:
    """The same comparisons that run in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton", reason="without Triton the operators are torch operations, which other tests compare")
    assert torch.version.hip is not None or backends.KERNELS["CUDA"]["minmax"] is cuda.minmax
    path = Path(__file__).parents[1] / "unit" / "ops" / "triton_equals_cpu.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_operations_have_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    """What runs where there is no Triton, whichever of the two this machine has."""
    x = values(dtype)
    scale, zero_point = ops.choose_qparams(*ops.minmax(x), 0, 255, False)
    args = (None, 0, 0, 255)
    on_device = [t.to(DEVICE) for t in (x, scale, zero_point)]
    same_bits(ops.fake_quantize(x, scale, zero_point, *args), reference.fake_quantize(*on_device, *args))
    for one, other in zip(ops.minmax(x, 0, 0), reference.minmax(on_device[0], 0, 0), strict=True):
        same_bits(one, other)
    state = [torch.zeros(64, dtype=torch.int64), torch.tensor([torch.inf, -torch.inf]), torch.zeros(2).long()]
    there = [t.to(DEVICE) for t in state]
    ops.observe_histogram_(*state, x)
    reference_search.observe_histogram_(*there, on_device[0])
    for one, other in zip(state, there, strict=True):
        same_bits(one, other)


def test_a_tensor_whose_elements_int32_does_not_count() -> None:
    rows, columns = (1 << 31) // 4096 + 1, 4096
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory on the device")
    x = torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE)
    x.copy_(torch.arange(columns, device=DEVICE).sub(2000).expand(rows, columns))
    x[-1, -1] = 1e4
    lo, hi = ops.minmax(x)
    assert (lo.item(), hi.item()) == (-2000.0, torch.tensor(1e4).bfloat16().item())
    scale, zero_point = torch.tensor(16.0, device=DEVICE), torch.tensor(0, dtype=torch.int32, device=DEVICE)
    y = ops.fake_quantize(x, scale, zero_point, None, 0, -128, 127)
    for row in (0, -1):
        expected = ops.fake_quantize(x[row].cpu(), scale.cpu(), zero_point.cpu(), None, 0, -128, 127)
        assert torch.equal(y[row].cpu(), expected)


@pytest.mark.parametrize("recipe", ["w8a8-fast", "w4a16", "w8a8"])
def test_a_model_goes_from_prepare_to_files(recipe: str, tmp_path: Path) -> None:
    batches: list[Any] = [{"input_ids": torch.arange(start, start + 12)[None]} for start in (0, 7, 90)]
    on_device = [{"input_ids": batch["input_ids"].to(DEVICE)} for batch in batches]
    one = pyquant.quantize(llama.tiny_model(), batches, recipe, progress=False)
    other = pyquant.quantize(llama.tiny_model().to(DEVICE), on_device, recipe, progress=False)
    if recipe == "w8a8-fast":  # weights do not depend on sums of the device
        for a, b in zip(weights(one), weights(other), strict=True):
            same_bits(a.integers, b.integers)
    with torch.no_grad():
        logits = other(**on_device[0]).logits.cpu()
        assert (logits - one(**batches[0]).logits).abs().max() < 0.1 * logits.abs().max()
    other.cpu()
    pyquant.save_quantized(other, tmp_path / "saved")
    assert pyquant.load_quantized(tmp_path / "saved", llama.tiny_model()) is not None


def test_the_command_writes_files_from_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyquant.cli.main import main

    checkpoints.qwen3_vl(tmp_path / "model")
    checkpoints.lines(tmp_path / "c.jsonl", {"prompt": "the digits"})
    words = [
        "quantize",
        "--model",
        str(tmp_path / "model"),
        "--recipe",
        "w8a8-fast",
        "--data",
        str(tmp_path / "c.jsonl"),
    ]
    unused = ["--unused", "model.visual*", "--unused", "model.language_model:deepstack_*"]
    assert main([*words, *unused, "--device", DEVICE, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert f"operators on {DEVICE}: {backends.summary(torch.device(DEVICE))[:20]}" in "".join(capsys.readouterr())
