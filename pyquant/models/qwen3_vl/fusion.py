# SPDX-License-Identifier: Apache-2.0
"""Where the places of a Qwen3-VL prompt find their visual rows, and deepstack features at the same places.

It owns the order of images and videos. The look-up itself is pyquant.decoder.fusion's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.decoder.fusion import Rows, row_index
from pyquant.models.qwen3_vl.positions import IMAGE, VIDEO


def visual_index(types: Tensor, images: int, videos: int) -> Tensor:
    """Where each place of a prompt finds its row: int64 (B, S) over [text (B * S) ; `images` rows ; `videos` rows].

    types (B, S) as positions.token_types gives them. Text finds itself; the r-th placeholder of an image, row by row,
    the r-th image row, and so for videos. Raises InputError unless there is one placeholder for each visual row.
    """
    towers = (Rows(IMAGE, images, "image", "pixel_values"), Rows(VIDEO, videos, "video", "pixel_values_videos"))
    return row_index(types, towers, _ADVICE)


_ADVICE = "expand each placeholder to frames * height * width / spatial_merge_size**2 tokens, as HF's processor does"


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
