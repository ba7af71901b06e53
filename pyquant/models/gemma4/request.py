# SPDX-License-Identifier: Apache-2.0
"""What a bundle of a Gemma4 is made of: a Profile, or a vision graph for each grid, from a request and data.

It owns the guesses. What a Profile means, and which graphs it makes, is profiles.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyquant.errors import InputError, ProfileError
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.models.request import (
    BundleChoice,
    Grid,
    Request,
    Sizes,
    as_settings,
    grids_of,
    rounded,
    text_options,
    text_sizes,
)

POSITIONS, FROM_PROCESSOR = "pixel_position_ids", "image_position_ids"
_IMAGES = (("pixel_values", FROM_PROCESSOR), ("pixel_values_videos", "video_position_ids"))
_TEXT = ("input_ids", "inputs_embeds")
_FRAMES = 100  # guessed audio lengths are seconds


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's arguments, without the padding that every image of the batch ends with: no layer need see it."""
    batch = dict(batch)
    if not any(name in batch for name in _TEXT) and FROM_PROCESSOR in batch and POSITIONS not in batch:
        batch[POSITIONS] = batch.pop(FROM_PROCESSOR)
    for pixels, positions in (("pixel_values", POSITIONS), *_IMAGES):
        if pixels in batch and positions in batch:
            real = (batch[positions] >= 0).all(dim=-1)
            longest = int(real.sum(dim=-1).max()) if real.numel() else real.shape[-1]
            if bool(real[..., longest:].any()):
                continue  # padding stands between patches, as transformers allows
            for name in (positions, pixels):
                batch[name] = batch[name][..., :longest, :]
    return batch


def sizes(batch: Mapping[str, Tensor]) -> Sizes:
    """Tokens of a row, the grid of each image and frame, by the furthest patch of it, and the frames of each clip.

    Raises InputError for images without positions.
    """
    if not any(name in batch for name in _TEXT):
        if POSITIONS not in batch:
            raise InputError(f"a Gemma4 vision model needs {POSITIONS} (B, P, 2), the batch has {', '.join(batch)}")
        found = _grids(batch[POSITIONS])
        return Sizes(grids=found, rows=len(found))
    grids: tuple[Grid, ...] = ()
    for pixels, positions in _IMAGES:
        if pixels in batch:
            if positions not in batch:
                raise InputError(f"a batch with {pixels} needs {positions} (images, P, 2)")
            grids += _grids(batch[positions])
    mask = batch.get("input_features_mask")
    clips = () if mask is None else tuple(int(count) for count in (mask != 0).sum(dim=1).tolist())
    return dataclasses.replace(text_sizes(batch), grids=grids, clips=clips)


def _grids(positions: Tensor) -> tuple[Grid, ...]:
    ends = (positions.reshape(-1, *positions.shape[-2:]).amax(dim=1) + 1).tolist()
    return tuple((1, int(height), int(width)) for width, height in ends)


def choose(config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
    """The Profile of a model with text, or one graph for each grid of a vision model, `vision_h{h}_w{w}`.

    Raises ProfileError for what the model cannot take.
    """
    if hasattr(config, "position_embedding_size"):
        return _vision(config, request, seen)
    from pyquant.models.gemma4.profiles import Profile

    vision, audio = (getattr(config, name, None) for name in ("vision_config", "audio_config"))
    absent = () if vision is not None else ("image_grids", "video_frames")
    request.refuse((*absent, *(() if audio is not None else ("audio_lengths",))), "a model without that tower")
    if not getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
        request.refuse(("per_layer_table",), "a model without per-layer embeddings")
    options, guesses = text_options(int(config.get_text_config().max_position_embeddings), request, seen)
    if vision is not None:
        grids, more = grids_of(request, seen)
        guesses += more
        for grid in grids:
            images = _image(grid)
            images.check_table(vision.position_embedding_size)
            images.check_kernel(vision.pooling_kernel_size)
        if missed := sorted({grid for each in seen for grid in each.grids} - set(grids)):
            guesses.append(f"image grids: the calibration data has {missed} too, which the bundle will refuse")
        options["image_shapes"] = tuple((height, width) for _, height, width in grids)
        if request.video_frames:
            options["video_frames"] = request.video_frames
    if audio is not None:
        options["audio_lengths"] = _lengths(request, seen, guesses)
    if request.per_layer_table is not None:
        options["per_layer_table"] = request.per_layer_table
    return BundleChoice(Profile(**options), as_settings(options), tuple(guesses))


def _lengths(request: Request, seen: Sequence[Sizes], guesses: list[str]) -> tuple[int, ...]:
    longest = max((frames for each in seen for frames in each.clips), default=0)
    if not request.audio_lengths:
        if not longest:
            return ()
        length = rounded(longest, _FRAMES)
        guesses.append(f"audio length {length}: the longest clip has {longest} frames, in steps of {_FRAMES} (1 s)")
        return (length,)
    if max(request.audio_lengths) < longest:
        guesses.append(
            f"audio lengths {list(request.audio_lengths)}: the calibration data has a clip of {longest} frames, which "
            "the bundle will refuse"
        )
    return request.audio_lengths


def _vision(config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
    text = ("max_seq_len", "prefill_lengths", "append_lengths", "layers", "attention", "audio_lengths", "video_frames")
    request.refuse((*text, "per_layer_table"), "a Gemma4 vision model")
    grids, guesses = grids_of(request, seen)
    profiles = {}
    for grid in grids:
        profile = _image(grid, request.batch_size)
        profile.check_table(config.position_embedding_size)
        profile.check_kernel(config.pooling_kernel_size)
        profiles[f"vision_h{grid[1]}_w{grid[2]}"] = profile
    settings = {"image_grids": [list(grid) for grid in grids], "batch_size": request.batch_size}
    return BundleChoice(profiles, settings, tuple(guesses))


def _image(grid: Grid, batch_size: int = 1) -> VisionProfile:
    frames, height, width = grid
    if frames != 1:
        raise ProfileError(
            f"a Gemma4 vision model takes an image or a frame at once, not {frames} frames; give HxW (and video_frames)"
        )
    return VisionProfile(grid=(height, width), batch_size=batch_size)
