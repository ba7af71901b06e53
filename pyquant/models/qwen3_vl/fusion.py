# SPDX-License-Identifier: Apache-2.0
"""The join of text and visual tokens: one look-up in [text ; visual], at any places, of any row, by an index.

It owns the index and the look-ups, the same for eager use and for graphs. The grid of the joined rows is model.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.positions import IMAGE, VIDEO


def visual_index(types: Tensor, images: int, videos: int) -> Tensor:
    """Where each place of a prompt finds its row: int64 (B, S) over [text (B * S) ; `images` rows ; `videos` rows].

    types (B, S) as positions.token_types gives them. Text finds itself; the r-th placeholder of an image, row by row,
    the r-th image row, and so for videos. Raises InputError unless there is one placeholder for each visual row.
    """
    batch, length = types.shape
    index = torch.arange(batch * length, device=types.device, dtype=torch.int64)
    flat, first = types.reshape(-1), batch * length
    for kind, rows, word, source in (
        (IMAGE, images, "image", "pixel_values"),
        (VIDEO, videos, "video", "pixel_values_videos"),
    ):
        here = flat == kind
        if rows != (count := int(here.sum())):
            per_row = (types == kind).sum(dim=1).tolist()
            raise InputError(
                f"the prompt has {count} {word} placeholder tokens ({', '.join(map(str, per_row))} in its rows), but "
                f"{source} make {rows} visual tokens; expand each {word}'s placeholder to frames * height * width / "
                "spatial_merge_size**2 tokens, as HF's processor does"
            )
        index[here] = first + torch.arange(rows, device=types.device, dtype=torch.int64)
        first += rows
    return index.reshape(batch, length)


def join(text: Tensor, visual: Tensor, index: Tensor) -> Tensor:
    """text (B, S, D), visual (V, D), index (B, S) over [text ; visual] -> (B, S, D)."""
    batch, length, size = text.shape
    table = torch.cat([text.reshape(batch * length, size), visual])
    return table.index_select(0, index.reshape(-1)).reshape(batch, length, size)


def spread(features: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
    """Rows (V, D) of each feature at their places by the same index, zero at text: (B, S, D) each.

    Text places all look up the one row of zeros before the features, visual ones their own after it.
    """
    batch, length = index.shape
    row = (index.reshape(-1) - (batch * length - 1)).clamp(min=0)
    found = []
    for feature in features:
        zero = torch.zeros(1, feature.shape[1], dtype=feature.dtype, device=feature.device)
        table = torch.cat([zero, feature])
        found.append(table.index_select(0, row).reshape(batch, length, feature.shape[1]))
    return tuple(found)
