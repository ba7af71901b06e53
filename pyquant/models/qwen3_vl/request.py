# SPDX-License-Identifier: Apache-2.0
"""What a bundle of a Qwen3-VL is made of: a Profile from what a user asked for and what calibration data shows.

It owns the guesses. What a Profile means, and which graphs it makes, is profiles.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyquant.errors import ProfileError, UnknownModuleError
from pyquant.models.qwen3_vl.grids import fault_of, grids_of
from pyquant.models.qwen3_vl.vision_static import VisionProfile
from pyquant.models.request import BundleChoice, Grid, Request, Sizes, as_settings, text_options, text_sizes
from pyquant.models.request import grids_of as chosen_grids


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The processor's names are the model's."""
    return batch


def sizes(batch: Mapping[str, Tensor]) -> Sizes:
    """Tokens of a row, and the grid of every image and video. Raises InputError for a grid that is none."""
    present = (batch[name] for name in ("image_grid_thw", "video_grid_thw", "grid_thw") if name in batch)
    grids = tuple(grid for table in present if len(table) for grid in grids_of(table, 1))
    return dataclasses.replace(text_sizes(batch), grids=grids)


def choose(config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
    """The Profile of a Qwen3VLForConditionalGeneration (or Qwen3VLModel), or a VisionProfile for each grid.

    Raises ProfileError for a grid that does not merge, lengths that contradict each other or the model, or too many
    grids; UnknownModuleError for a text model alone.
    """
    vision = getattr(config, "vision_config", config)
    if not hasattr(vision, "spatial_merge_size"):
        raise UnknownModuleError(
            f"pyquant makes bundles of a whole Qwen3-VL or of its vision model, not of a {config.model_type} alone; "
            f"export its graphs from Python: pyquant.export(q, qwen3_vl.TextProfile(...))"
        )
    request.refuse(("audio_lengths", "video_frames", "per_layer_table"), "a Qwen3-VL")
    grids, guesses = _one_prompt(request, seen) if request.layers == "whole" else chosen_grids(request, seen)
    for grid in grids:
        if fault := fault_of(grid, vision.spatial_merge_size):
            raise ProfileError(f"the image grid {'x'.join(map(str, grid))} (frames x height x width): {fault}")
    if vision is config:
        request.refuse(
            ("max_seq_len", "prefill_lengths", "append_lengths", "batch_size", "layers", "attention"),
            "a vision model alone",
        )
        profiles = [VisionProfile(grid) for grid in grids]
        settings = {"image_grids": [list(grid) for grid in grids]}
        return BundleChoice({profile.name: profile for profile in profiles}, settings, tuple(guesses))
    return _whole(config, request, seen, grids, guesses)


def _one_prompt(request: Request, seen: Sequence[Sizes]) -> tuple[tuple[Grid, ...], list[str]]:
    """The images of the one prompt that a single graph takes, in order; one grid may come twice."""
    if request.image_grids:
        return request.image_grids, []
    found = sorted({sizes.grids for sizes in seen})
    if len(found) > 1:
        raise ProfileError(
            "layers='whole' is one graph for prompts with the same images, and the calibration data has several kinds; "
            "name the grid of each image of a prompt, in order: --image-grid HxW HxW (in Python: image_grids)"
        )
    return (found[0], [f"image grids {list(found[0])}: those of every prompt"]) if found else ((), [])


def _whole(
    config: Any, request: Request, seen: Sequence[Sizes], grids: tuple[Grid, ...], guesses: list[str]
) -> BundleChoice:
    from pyquant.models.qwen3_vl.profiles import Profile

    options, more = text_options(int(config.text_config.max_position_embeddings), request, seen)
    guesses += more
    missed = sorted({grid for each in seen for grid in each.grids if not {grid, (1, *grid[1:])} & set(grids)})
    if missed and request.layers != "whole":
        guesses.append(f"image grids: the calibration data has {missed} too, which the bundle will refuse")
    options = {"image_grids": grids, **options}
    return BundleChoice(Profile(**options), as_settings(options), tuple(guesses))
