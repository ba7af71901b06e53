# SPDX-License-Identifier: Apache-2.0
"""The state dict of one converted tree in another: the same model, or an error before anything is written."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel
from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

import pyquant
from pyquant import Policy
from pyquant.errors import CheckpointError
from pyquant.wrap import QModule

PRESETS = ["w8a8", "w8a8_int8", "w4a8", "w8a16"]


def quantized(fp: nn.Module, preset: str, x: Tensor) -> QModule:
    q = pyquant.prepare(fp, Policy.preset(preset))
    pyquant.calibrate(q, [x], progress=False)
    pyquant.convert(q)
    return q


def pair(preset: str = "w8a8") -> tuple[QModule, QModule, Tensor]:
    """Two converted trees of one architecture, with other weights and other data."""
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    a = quantized(ToyBlock(extra=True), preset, x)
    other = ToyBlock(extra=True)
    with torch.no_grad():
        other.up.bias.add_(2)
    return a, quantized(other, preset, 30 * x + 5), x


def checksums(q: QModule, folder: Path) -> dict[str, str]:
    pyquant.save_quantized(q, folder)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}


WAYS: dict[str, dict[str, Any]] = {"strict": {}, "lenient": {"strict": False}, "assigned": {"assign": True}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_loaded_tree_is_the_same_model(preset: str, way: str, tmp_path: Path) -> None:
    a, b, x = pair(preset)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(copy.deepcopy(a.state_dict()), **WAYS[way])
    assert torch.equal(a(x), b(x))
    for ours, theirs in zip(a.all_qmodules(), b.all_qmodules(), strict=True):
        for name in ours.BIASES:
            scales = [module._buffers[f"{name}_scale"] for module in (ours, theirs)]
            if getattr(ours, name) is None:
                assert scales == [None, None]
            else:
                assert torch.equal(*scales)
    assert checksums(b, tmp_path / "b") == checksums(a, tmp_path / "a")
    assert torch.equal(pyquant.load_quantized(tmp_path / "b", ToyBlock(extra=True))(x), a(x))


def test_through_a_file_and_into_a_part(tmp_path: Path) -> None:
    a, b, x = pair()
    torch.save(a.state_dict(), tmp_path / "a.pt")
    b.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert torch.equal(a(x), b(x))
    a, b, _ = pair()
    h = torch.randn(4, 8)
    b.up.load_state_dict(dict(a.up.state_dict()))  # a plain dict has no metadata
    assert torch.equal(a.up(h), b.up(h))


def test_inside_another_module() -> None:
    a, b, x = pair()
    outer, inner = nn.Sequential(a), nn.Sequential(b)
    inner.load_state_dict(outer.state_dict())
    assert torch.equal(inner(x), outer(x))


def test_the_ends_of_a_grid_follow() -> None:
    """What a clip is compared with is a number, computed from the scale."""
    config = Gemma4VisionConfig(hidden_size=8, use_clipped_linears=True)
    trees = []
    for bound in (1.0, 50.0):
        fp = modeling_gemma4.Gemma4ClippableLinear(config, 8, 8)
        for name in ("input_max", "output_max"):
            getattr(fp, name).fill_(bound)
        for name in ("input_min", "output_min"):
            getattr(fp, name).fill_(-bound / 4)
        trees.append(quantized(fp, "w8a16", 20 * bound * torch.randn(64, 8)))
    x = 100 * torch.randn(64, 8)
    a, b = trees
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize(("there", "here"), [("w8a8", "w8a8_int8"), ("w4a16", "w8a16"), ("w8a16", "w4a16")])
@pytest.mark.parametrize("strict", [True, False])
def test_a_tree_of_other_formats_is_refused_whole(there: str, here: str, strict: bool) -> None:
    a, _, x = pair(there)
    _, b, _ = pair(here)
    want = b(x)
    with pytest.raises(
        CheckpointError, match="nothing of it was loaded; prepare and convert with the policy"
    ) as caught:
        b.load_state_dict(a.state_dict(), strict=strict)
    assert "symmetric" in str(caught.value)
    assert torch.equal(b(x), want)


def test_scales_in_a_tree_that_is_not_converted_are_refused() -> None:
    a, _, _ = pair()
    b = pyquant.prepare(ToyBlock(extra=True), Policy.preset("w8a8"))
    with pytest.raises(CheckpointError, match="has a scale there, and this tree is not converted yet"):
        b.load_state_dict(a.state_dict(), strict=False)


def test_a_float_state_dict_still_loads_into_a_prepared_tree() -> None:
    fp, other = ToyModel(), ToyModel()
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    q.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(q.head.weight, other.head.weight)
