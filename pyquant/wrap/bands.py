# SPDX-License-Identifier: Apache-2.0
"""Attention within a window as bands: the queries of a block of tokens see the keys of their block and the one before.

It owns moving blocks into the batch and back, with tensors of four axes. What attention does there is attention.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bands(NamedTuple):
    """query (B * n, H, block, D), key and value (B * n, Hkv, 2 * block, D), mask (B * n, 1 or H, block, 2 * block)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor


def bands_of(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, block: int) -> Bands:
    """query (B, H, S, D), key and value (B, Hkv, S, D), mask (B, 1 or H, S, 2 * block), whose columns are the keys of
    the block before a query's own, then those of its own. `block` divides S.

    The first block has none before it: there stand its own keys again, which the mask has to drop.
    """
    return Bands(_blocks(query, block), _two_blocks(key, block), _two_blocks(value, block), _blocks(mask, block))


def joined(x: Tensor, batch: int) -> Tensor:
    """(B * n, H, block, D) -> (B, H, n * block, D)."""
    blocks, heads, length, size = len(x) // batch, *x.shape[1:]
    return x.reshape(batch, blocks, heads, length * size).transpose(1, 2).reshape(batch, heads, blocks * length, size)


def block_length(tokens: int, window: int, blocks: int) -> int | None:
    """The shortest block that divides `tokens` into at least so many `blocks` and reaches a `window` back; None: none
    does. A query sees itself and window - 1 keys before it."""
    fitting = (length for length in range(max(window - 1, 1), tokens // blocks + 1) if tokens % length == 0)
    return next(fitting, None)


def _two_blocks(x: Tensor, block: int) -> Tensor:
    """(B, H, n * block, D) -> (B * n, H, 2 * block, D): each block behind the one before it."""
    before = torch.cat([x[:, :, :block], x[:, :, : x.shape[2] - block]], dim=2)
    return torch.cat([_blocks(before, block), _blocks(x, block)], dim=2)


def _blocks(x: Tensor, block: int) -> Tensor:
    """(B, H, n * block, D) -> (B * n, H, block, D)."""
    batch, heads, tokens, size = x.shape
    count = tokens // block
    if heads == 1:
        return x.reshape(batch * count, 1, block, size)
    return x.reshape(batch, heads, count, block * size).transpose(1, 2).reshape(batch * count, heads, block, size)
