# SPDX-License-Identifier: Apache-2.0
"""What a bundle of a Gemma4 vision model is made of: a graph for each grid of patches.

It owns turning a request and the grids of calibration data into VisionProfiles. Their meaning is profiles.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyquant.errors import InputError, ProfileError
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.models.request import BundleChoice, Request, Sizes, grids_of

POSITIONS, FROM_PROCESSOR = "pixel_position_ids", "image_position_ids"


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision model's arguments, without the padding that every image of the batch has: no layer need see it."""
    batch = dict(batch)
    if FROM_PROCESSOR in batch and POSITIONS not in batch:
        batch[POSITIONS] = batch.pop(FROM_PROCESSOR)
    if POSITIONS in batch and "pixel_values" in batch:
        longest = int((batch[POSITIONS] >= 0).all(dim=-1).sum(dim=-1).max())
        for name in (POSITIONS, "pixel_values"):
            batch[name] = batch[name][:, :longest]
    return batch


def sizes(batch: Mapping[str, Tensor]) -> Sizes:
    """The grid of each image, by the furthest patch of it. Raises InputError for a batch without positions."""
    if POSITIONS not in batch:
        raise InputError(f"a Gemma4 vision model needs {POSITIONS} (B, P, 2), the batch has {', '.join(batch)}")
    ends = (batch[POSITIONS].amax(dim=1) + 1).tolist()
    return Sizes(grids=tuple((1, int(height), int(width)) for width, height in ends), rows=len(ends))


def choose(config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
    """One graph for each grid, `vision_h{h}_w{w}`. Raises ProfileError for a grid that the model cannot take."""
    request.refuse(("max_seq_len", "prefill_lengths", "layers", "attention"), "a Gemma4 vision model")
    grids, guesses = grids_of(request, seen)
    profiles = {}
    for frames, height, width in grids:
        if frames != 1:
            raise ProfileError(f"a Gemma4 vision model takes images, not {frames} frames; give HxW")
        profile = VisionProfile(grid=(height, width), batch_size=request.batch_size)
        profile.check_table(config.position_embedding_size)
        profile.check_kernel(config.pooling_kernel_size)
        profiles[f"vision_h{height}_w{width}"] = profile
    settings = {"image_grids": [list(grid) for grid in grids], "batch_size": request.batch_size}
    return BundleChoice(profiles, settings, tuple(guesses))
