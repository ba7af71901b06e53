# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL vision graphs on the real runtime onert: float against transformers, and with the weights that onert takes.

onert rounds the activations of a product with integer weights as it runs. Eager does not; the emulation here does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from qwen_vision_tiny import BATCHES, CASES, STATIC, pixels, profile_of, vision
from test_qwen_vision_wrappers import adapter_of, close
from torch import Tensor, nn

import pyquant
from pyquant import Policy
from pyquant.verify.runtimes import onert
from pyquant.wrap import QModule
from pyquant.wrap.linear import QuantLinear
from tests.onert_blocks import presets

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

FLOAT = [name for name in CASES if name not in STATIC or not name.startswith("model")]
FLOAT += ["model_taps", "model_merge_1"]


@pytest.mark.parametrize("name", FLOAT)
def test_the_float_file_computes_what_transformers_computes(name: str) -> None:
    case, fp = CASES[name], CASES[name].build()
    given = case.inputs(fp, BATCHES["mixed"])
    q = converted(fp, "float", given)
    program = pyquant.export(adapter_of(name, "mixed", q, given[case.first]), target="onert")
    got = onert.run(program, [given[case.first]])
    with torch.no_grad():
        for mine, theirs in zip(got.values(), case.pick(fp(**given)), strict=True):
            close(mine.reshape(theirs.shape), theirs)


def converted(fp: nn.Module, preset: str, given: dict[str, Any]) -> QModule:
    q = pyquant.prepare(fp, Policy.preset(preset))
    pyquant.calibrate(q, [given], progress=False)
    pyquant.convert(q)
    return q


def rounded(block: int | None) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    """Pre-hook: inputs on a symmetric 8-bit grid, one scale a row or a block of a row."""

    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        parts = args[0].reshape(-1, args[0].shape[-1] if block is None else block)
        scale = parts.abs().amax(dim=-1, keepdim=True) / 127
        return ((torch.round(parts / scale.clamp(min=1e-30)) * scale).reshape(args[0].shape),)

    return hook


def rms(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


@pytest.mark.parametrize("preset", presets("w8_onert", "q8_onert", "w4_onert"))
def test_integer_weights_make_the_error_of_their_rounding(preset: str) -> None:
    """int8 weights: equal to the emulation. ggml's blocks, whose scales are float16: as far from eager as it is."""
    grids = BATCHES["mixed"]
    fp = vision(intermediate_size=64, out_hidden_size=32, depth=1, deepstack_visual_indexes=[0])
    given = {"hidden_states": pixels(grids), "grid_thw": torch.tensor(grids)}
    q = converted(fp, preset, given)
    got = onert.run(pyquant.export(q, profile_of(grids), target="onert"), [pixels(grids)])
    pick = CASES["model_taps"].pick
    with torch.no_grad():
        eager = pick(q(**given))
        for module in q.modules():
            if isinstance(module, QuantLinear):
                module.register_forward_pre_hook(rounded(None if preset == "w8_onert" else 32))
        emulated = pick(q(**given))
    for mine, plain, known in zip(got.values(), eager, emulated, strict=True):
        if preset == "w8_onert":
            close(mine, known)
        assert rms(mine - plain) < 1.5 * rms(known - plain)
