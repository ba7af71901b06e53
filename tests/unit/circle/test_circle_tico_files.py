# SPDX-License-Identifier: Apache-2.0
"""Files that TICO writes: read without faults, taken apart into a plan, and written again with the same meaning."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tico
import torch
from tico.quantization import convert, prepare
from tico.quantization.config.ptq import PTQConfig
from torch import nn

import pyquant.circle
from pyquant._launch import program

pytestmark = pytest.mark.filterwarnings("ignore")


class Mixed(nn.Module):
    """Operators of many kinds: weights, norms, moves, reductions, comparisons, indices, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.layer_norm = nn.LayerNorm(6)
        self.rms_norm = nn.RMSNorm(6, eps=1e-6)
        self.embedding = nn.Embedding(10, 6)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.rms_norm(self.layer_norm(nn.functional.gelu(self.linear(x)))) + self.embedding(ids)
        a, b = h.split([2, 4], -1)
        y = torch.cat([b, a], -1).softmax(-1).transpose(0, 1)
        chosen = torch.where(y > 0.1, y, -y).sum(-1, keepdim=True)
        return chosen, y.argmax(-1), self.conv(image).mean((2, 3)), h.clamp(-1, 1)


def mixed() -> object:
    inputs = (torch.randn(3, 8), torch.arange(3), torch.randn(1, 3, 8, 8))
    return tico.convert(Mixed().eval(), inputs)


def quantized() -> object:
    wrapped = prepare(nn.Linear(8, 6), PTQConfig())
    wrapped(torch.randn(3, 8))
    return tico.convert(convert(wrapped).eval(), (torch.randn(3, 8),))


@pytest.mark.parametrize("build", [mixed, quantized], ids=["float", "quantized"])
def test_tico_files(build: Callable[[], object], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("tico.circle", "plan.json", "w.safetensors", "ours.circle")]
    theirs, plan, weights, ours = paths
    build().save(str(theirs))  # type: ignore[attr-defined]
    assert pyquant.circle.check(theirs) == []
    for command in (
        ["plan", theirs, "-o", plan, "--weights", weights],
        ["write", plan, "--weights", weights, "-o", ours],
    ):
        done = subprocess.run([program(), *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert pyquant.circle.diff(theirs, ours) == []
