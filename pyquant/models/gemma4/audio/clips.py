# SPDX-License-Identifier: Apache-2.0
"""A padded batch of clips, one at a time without its padding: what calibration sees of it.

It owns taking clips out of a batch and putting results back in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.models.gemma4.audio.profiles import tokens_of


def clip_by_clip(forward: Callable[[Tensor, Tensor | None], Tensor], features: Tensor, mask: Tensor) -> Tensor | None:
    """Soft tokens (B, ceil(T / 4), D) of a batch, with zeros at padding; None where there is nothing but padding.

    `forward` takes the frames of one clip up to its last one, (1, n, mel bins), and a mask where some of these are
    padding too.
    """
    batch, length = mask.shape
    out: Tensor | None = None
    for row in range(batch):
        valid = mask[row] != 0
        frames = int(torch.nonzero(valid)[-1]) + 1 if bool(valid.any()) else 0
        if not frames:
            continue
        own, whole = slice(row, row + 1), bool(valid[:frames].all())
        tokens = forward(features[own, :frames], None if whole else mask[own, :frames])
        out = tokens.new_zeros(batch, tokens_of(length), tokens.shape[-1]) if out is None else out
        out[own, : tokens.shape[1]] = tokens
    return out
