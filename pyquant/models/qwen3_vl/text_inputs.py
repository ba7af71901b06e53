# SPDX-License-Identifier: Apache-2.0
"""What HF's text model is called with, as what a stack of layers takes: three rows of positions, dense addends.

It owns reading and checking these arguments. Masks are causal.py, rotary tables text_model.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.hf import refuse_recording
from pyquant.site import exporting


def tokens_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one that is given: input_ids (B, S) or inputs_embeds (B, S, D). Raises InputError for both or neither."""
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("the text model takes either input_ids (B, S) or inputs_embeds (B, S, D), and not both")
    if input_ids is not None:
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise InputError(
                f"input_ids is {input_ids.dtype} of shape {tuple(input_ids.shape)}, expected integers (B, S)"
            )
        return input_ids
    assert inputs_embeds is not None
    if inputs_embeds.dim() != 3 or not inputs_embeds.is_floating_point():
        raise InputError(
            f"inputs_embeds is {inputs_embeds.dtype} of shape {tuple(inputs_embeds.shape)}, expected floating point "
            "(B, S, D)"
        )
    return inputs_embeds


def refuse_unsupported(kwargs: Mapping[str, Any], config: Any) -> None:
    """Raise InputError for what HF's text model does on request and this one does not."""
    refuse_recording(kwargs)
    if kwargs.get("is_causal", getattr(config, "is_causal", True)) is False:
        raise InputError(
            "is_causal=False makes the text model bidirectional, which the quantized one is not; give a 4-D "
            "attention_mask of (batch, 1, queries, keys) instead"
        )


def positions_of(position_ids: Tensor | None, tokens: Tensor, past: Any) -> tuple[Tensor, Tensor | None]:
    """((3, B, S) time, height, width; (B, S) text positions or None) as transformers reads `position_ids`.

    None counts on from `past`. Raises InputError for a shape that is none of those the text model takes.
    """
    batch, length = tokens.shape[:2]
    if position_ids is None:
        counted = (torch.arange(length, device=tokens.device) + past)[None].expand(batch, -1)
        return counted[None].expand(3, -1, -1), None  # text positions that go up by one say nothing
    ids = position_ids if position_ids.dim() != 2 else position_ids[None].expand(4, -1, -1)
    fits = ids.dim() == 3 and ids.shape[0] in (3, 4)
    if not fits or (not exporting() and (ids.shape[1] not in (1, batch) or ids.shape[2] != length)):
        raise InputError(
            f"position_ids is {tuple(position_ids.shape)}, expected ({batch}, {length}), or (3, {batch}, {length}) for "
            "time, height and width, or (4, ...) with text positions before them"
        )
    return (ids[1:], ids[0]) if ids.shape[0] == 4 else (ids, None)


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
    rows = None if exporting() else int(where.sum())
    for k, feature in enumerate(features):
        if feature.dim() != 2 or feature.shape[1] != shape[2] or (rows is not None and feature.shape[0] != rows):
            raise InputError(
                f"deepstack_visual_embeds[{k}] is {tuple(feature.shape)}, expected ({rows or 'visual tokens'}, "
                f"{shape[2]}): a row for each true entry of visual_pos_masks"
            )
    zeros = torch.zeros(shape, dtype=dtype, device=device)
    return tuple(zeros.masked_scatter(where.unsqueeze(-1), feature.to(device, dtype)) for feature in features)
