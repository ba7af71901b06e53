# SPDX-License-Identifier: Apache-2.0
"""What HF's text model is called with, as what a stack of layers takes: tokens and positions.

It owns reading and checking these arguments. Masks are masks.py, rotary tables model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.wrap.hf import refuse_recording


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


def given_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """As tokens_of, for a model with towers. Raises InputError for both or neither, and for other ranks."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise InputError("the model takes either input_ids (B, S) or inputs_embeds (B, S, D), and not both")
    if given.dim() != (3 if given.is_floating_point() else 2):
        raise InputError(f"expected input_ids (B, S) or inputs_embeds (B, S, D), got {tuple(given.shape)}")
    return given


def refuse_unsupported(kwargs: Mapping[str, Any], config: Any, causal: bool = True) -> None:
    """Raise InputError for what HF's text model does on request and this one does not.

    causal: what the wrapper computes, when nobody asks for anything else.
    """
    refuse_recording(kwargs, config)
    if causal and kwargs.get("is_causal", getattr(config, "is_causal", True)) is False:
        raise InputError(
            "is_causal=False makes the text model bidirectional, which the quantized one is not; give a 4-D "
            "attention_mask of (batch, 1, queries, keys) instead"
        )


def positions_of(position_ids: Tensor | None, tokens: Tensor, past: Any, axes: int = 1) -> tuple[Tensor, Tensor | None]:
    """((axes, B, S) positions of the rotary embedding; (B, S) text positions or None) as transformers reads them.

    axes: 1, or 3 for time, height and width. None counts on from `past`. Raises InputError for a shape that is none of
    those the text model takes.
    """
    batch, length = tokens.shape[:2]
    if position_ids is None:
        counted = (torch.arange(length, device=tokens.device, dtype=torch.int64) + past)[None].expand(batch, -1)
        return counted[None].expand(axes, -1, -1), None  # text positions that go up by one carry no information
    if axes == 1:
        _check_positions(position_ids, position_ids.dim() == 2, position_ids.shape, batch, length, "")
        return position_ids[None], position_ids
    ids = position_ids if position_ids.dim() != 2 else position_ids[None].expand(axes + 1, -1, -1)
    fits = ids.dim() == 3 and ids.shape[0] in (axes, axes + 1)
    more = f", or (3, {batch}, {length}) for time, height and width, or (4, ...) with text positions before them"
    _check_positions(position_ids, fits, ids.shape[1:], batch, length, more)
    return (ids[1:], ids[0]) if ids.shape[0] == axes + 1 else (ids, None)


def _check_positions(
    given: Tensor, fits: bool, shape: tuple[int, ...], batch: int, length: int, alternatives: str
) -> None:
    if not fits or shape[0] not in (1, batch) or shape[1] != length:
        raise InputError(f"position_ids is {tuple(given.shape)}, expected ({batch}, {length}){alternatives}")
