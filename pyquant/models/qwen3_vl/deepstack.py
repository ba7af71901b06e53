# SPDX-License-Identifier: Apache-2.0
"""Deepstack: visual features that are added after the first decoder layers, as dense tensors.

It owns reading HF's arguments for them. How features become dense in a graph is fusion.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.errors import InputError


def dense_addends(
    where: Tensor | None, features: Sequence[Tensor] | None, shape: tuple[int, int, int], dtype: torch.dtype, taps: int
) -> tuple[Tensor, ...]:
    """HF's deepstack arguments as one tensor of `shape` (B, S, D) for each feature, zero at text tokens.

    `where` (B, S) bool; `features` each (true entries of `where`, D). Raises InputError when they do not fit.
    """
    if not features:
        return ()
    if len(features) > taps:
        raise InputError(
            f"deepstack_visual_embeds has {len(features)} features, but the quantized text model has sites for {taps}; "
            f"give at most {taps}, or prepare a whole model whose vision tower makes that many"
        )
    if where is None or tuple(where.shape) != shape[:2]:
        raise InputError(
            f"visual_pos_masks is {None if where is None else tuple(where.shape)}, expected bool of shape {shape[:2]}: "
            "where the rows of deepstack_visual_embeds are added"
        )
    device = where.device
    where = where.to(torch.bool)
    # The number of rows is data: a graph of torch.export keeps no check of it, and the same numbers.
    rows = feature_rows(where)
    for k, feature in enumerate(features):
        if feature.dim() != 2 or feature.shape[1] != shape[2] or rows not in (None, feature.shape[0]):
            raise InputError(
                f"deepstack_visual_embeds[{k}] is {tuple(feature.shape)}, expected ({rows or 'visual tokens'}, "
                f"{shape[2]}): a row for each true entry of visual_pos_masks"
            )
    zeros = torch.zeros(shape, dtype=dtype, device=device)
    return tuple(zeros.masked_scatter(where.unsqueeze(-1), feature.to(device, dtype)) for feature in features)


def feature_rows(where: Tensor) -> int | None:
    """How many entries of `where` are true; None during torch.export, where values are not known."""
    return None if torch.compiler.is_exporting() else int(where.sum())
