# SPDX-License-Identifier: Apache-2.0
"""What a hostile batch or profile does to a vision model: garbage in padding, bytes as pixels, padded positions."""

from __future__ import annotations

from collections.abc import Callable

import gemma4_tiny as tiny
import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import Policy, wrap
from pyquant.errors import InputError, ProfileError
from pyquant.models import gemma4
from pyquant.wrap import Phase, QModule

IDS = tiny.positions((4, 4), (2, 4), patches=24)
PADDING = (IDS == -1).all(-1, keepdim=True)
PIXELS = tiny.pixels(IDS)
GARBAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "large": lambda x: x.masked_fill(PADDING, 1e4),
    "nan": lambda x: x.masked_fill(PADDING, float("nan")),
    "noise": lambda x: torch.where(PADDING, 50 * torch.randn_like(x), x),
}


def prepared() -> QModule:
    return pyquant.prepare(tiny.vision(standardize=True), Policy.preset("w8a8"))


def converted(values: Tensor) -> QModule:
    q = prepared()
    pyquant.calibrate(q, [{"pixel_values": values, "pixel_position_ids": IDS}], progress=False)
    pyquant.convert(q)
    return q


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_padding_does_not_reach_the_ranges(garbage: str) -> None:
    values = GARBAGE[garbage](PIXELS)
    kept = values.clone()
    for ours, theirs in zip(converted(values).all_sites(), converted(PIXELS).all_sites(), strict=True):
        a, b = ours.qparams, theirs.qparams
        assert (a is None and b is None) or (a is not None and b is not None and a.same_grid(b)), ours.path
    assert torch.equal(values, kept) or garbage == "nan"  # the batch is not written to


@pytest.mark.parametrize("part", ["model", "patch_embedder"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("phase", [Phase.FLOAT, Phase.CALIBRATE], ids=lambda p: p.name)
def test_integer_pixels_are_refused(part: str, dtype: torch.dtype, phase: Phase) -> None:
    q = prepared()
    module = q if part == "model" else q.patch_embedder
    with (
        wrap.phase(q, phase),
        pytest.raises(
            InputError, match=rf"pixel_values are {dtype}, expected floating point from 0 to 1; .* divide .* by 255"
        ),
    ):
        module((PIXELS * 255).to(dtype), IDS)


IDS_LISTS: dict[str, Callable[[Tensor], object]] = {"tensor": lambda t: t, "list": lambda t: t.tolist()}


@pytest.mark.parametrize("form", IDS_LISTS)
def test_explicit_positions_keep_their_padding(form: str) -> None:
    ids = tiny.positions((4, 4), (2, 4), (4, 2), patches=24)
    profile = gemma4.VisionProfile(pixel_position_ids=IDS_LISTS[form](ids))
    assert profile.shape == (3, 24)
    assert torch.equal(profile.positions, ids)


def test_explicit_positions_are_exported_with_their_padding() -> None:
    q = converted(PIXELS)
    adapter = q.as_export_module(gemma4.VisionProfile(pixel_position_ids=IDS))
    assert adapter.input_specs["pixel_values"].shape == (2, 24, 12)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("patches", [16, 20, 32])
def test_num_patches_overrides_the_padding_of_explicit_positions(patches: int) -> None:
    assert gemma4.VisionProfile(pixel_position_ids=IDS, num_patches=patches).shape == (2, patches)


def test_grids_are_padded_to_the_largest_image_only() -> None:
    assert gemma4.VisionProfile(grid=((4, 4), (2, 4))).shape == (2, 16)


@pytest.mark.parametrize("grid", [(True, True), ((4, True),), (4.0, 4), ((4, 4.5),), ("4", "4")], ids=repr)
def test_a_grid_is_of_integers(grid: object) -> None:
    with pytest.raises(ProfileError, match=r"grid is \(height, width\) in patches, .*got "):
        gemma4.VisionProfile(grid=grid)
