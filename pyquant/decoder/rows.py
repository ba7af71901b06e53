# SPDX-License-Identifier: Apache-2.0
"""A padded batch, one row at a time without its padding: what calibration sees of it.

It owns taking rows out of a batch and its cache, and putting results back in place. The forward of a row is the text
model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.past import KeyValue, Past

# (tokens of the row, positions (axes, 1, n), past, extras of the row) -> hidden states (1, n, D)
Forward = Callable[[Tensor, Tensor, Past, Mapping[str, Tensor]], Tensor]


def row_by_row(
    forward: Forward, tokens: Tensor, valid: Tensor, positions: Tensor, cache: Any, extras: Mapping[str, Tensor]
) -> Tensor:
    """Hidden states (B, S, D) of a batch, with zeros at padding; so are the keys and values that `cache` gets.

    `tokens` (B, S) or (B, S, D); `valid` (B or 1, past + S) bool; `positions` (axes, B or 1, S);
    `extras` by name, each (B, S, ...).
    """
    batch, length = tokens.shape[:2]
    valid = valid.to(tokens.device)
    before = valid.shape[1] - length
    out: Tensor | None = None
    new: dict[int, KeyValue] = {}
    for row in range(batch):
        keys = valid[min(row, len(valid) - 1)]
        now = keys[before:]
        if not bool(now.any()):
            continue
        own = slice(row, row + 1)
        past = Past(_row_of(cache, own, keys[:before]) if before else None)
        at = positions[:, min(row, positions.shape[1] - 1), None, now.to(positions.device)]
        hidden = forward(tokens[own, now], at, past, {name: extra[own, now] for name, extra in extras.items()})
        out = hidden.new_zeros(batch, length, hidden.shape[-1]) if out is None else out
        out[own, now] = hidden
        for layer, pair in past.new.items():
            for whole, part in zip(new.setdefault(layer, _zeros(pair, batch, length)), pair, strict=True):
                whole[own, :, now] = part
    assert out is not None, "a batch of padding alone was refused before"
    for layer, (key, value) in new.items():
        if cache is not None:
            cache.update(key, value, layer)
    return out


def _row_of(cache: Any, own: slice, keep: Tensor) -> dict[int, KeyValue]:
    """One row of an HF cache, without its padding. A layer with a window keeps the last of its keys only."""
    found = {}
    for i, layer in enumerate(cache.layers):
        if layer.keys is None:
            continue
        first = max(0, len(keep) - layer.keys.shape[2])
        kept = torch.nonzero(keep[first:])[:, 0]
        found[i] = (layer.keys[own].index_select(2, kept), layer.values[own].index_select(2, kept))
    return found


def _zeros(pair: KeyValue, batch: int, length: int) -> KeyValue:
    key, value = (t.new_zeros(batch, t.shape[1], length, t.shape[3]) for t in pair)
    return key, value
