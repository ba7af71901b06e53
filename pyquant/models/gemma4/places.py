# SPDX-License-Identifier: Apache-2.0
"""Which places of a Gemma4 prompt are images, videos or audio, and which row each of them gets.

It owns the kinds and their order, for the model and for the host of a bundle. The look-up is pyquant.decoder.fusion's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyquant.decoder.fusion import Rows, row_index

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3  # as transformers' processor has them in mm_token_type_ids
TOKENS = {IMAGE: "image_token_id", VIDEO: "video_token_id", AUDIO: "audio_token_id"}  # entries of the config


class Counts(NamedTuple):
    """How many rows images, videos and audio have."""

    images: int = 0
    videos: int = 0
    audio: int = 0


def types_of(ids: Tensor, tokens: Mapping[int, int | None]) -> Tensor:
    """ids (B, S) -> kinds, int64 (B, S). tokens: kind -> its placeholder; None for one that the model does not have."""
    types = torch.zeros_like(ids, dtype=torch.int64)
    for kind, token in tokens.items():
        if token is not None:
            types[ids == token] = kind
    return types


def place_index(types: Tensor, counts: Counts) -> Tensor:
    """Where each place finds its row: (B, S) over [text ; images ; videos ; audio]; see fusion.row_index."""
    towers = (
        Rows(IMAGE, counts.images, "image", "pixel_values"),
        Rows(VIDEO, counts.videos, "video", "pixel_values_videos"),
        Rows(AUDIO, counts.audio, "audio", "input_features"),
    )
    return row_index(types, towers, "expand each placeholder to as many tokens, as HF's processor does")


def visual_runs(types: Tensor) -> Tensor:
    """Which run of visual places each place is of: kinds (B, S) -> int64 (B, S), -1 for text and audio. An image beside
    a video is one run, as in transformers."""
    visual = (types == IMAGE) | (types == VIDEO)
    starts = visual & ~torch.nn.functional.pad(visual[:, :-1], (1, 0))
    return (starts.long().cumsum(dim=1) - 1).masked_fill(~visual, -1)
