# SPDX-License-Identifier: Apache-2.0
"""The attention mask of a text model: causal, padded, packed, or given; always the size of the call, never a table.

It owns which key a query may look at, as transformers defines it. How a mask enters the logits is wrap.attention's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.wrap.attention import FILL, AdditiveMask


def text_mask(
    attention_mask: Tensor | None,
    embeds: Tensor,
    cache: Any = None,
    text_positions: Tensor | None = None,
    *,
    window: int | None = None,
    layer: int = 0,
    causal: bool = True,
    blocks: Blocks | None = None,
) -> AdditiveMask:
    """What transformers' create_causal_mask means, as (B or 1, 1 or H, Q, K) of 0 and FILL.

    `attention_mask`: None; (B, keys) of any type, zero at padding; or 4-D, used as it is: true (or nonzero) where a
    query may look, or added when floating point. `embeds` (B, Q, D) gives sizes, type and device; `cache` (HF's, or a
    Past) the keys that are there before. `text_positions` (B, Q): where they do not go up by one, another packed
    sequence begins; as in transformers that counts only without mask and cache. `window`: how many positions back a
    query sees, itself included. `layer`: whose part of the cache it is, where layers keep unequal parts. `causal`
    False: a query sees what follows too, and of a window all that is at most `window` away. `blocks`: tokens that see
    each other.

    There is a mask even if nothing is masked, so that the arithmetic is that of a static graph. Raises InputError for a
    mask that does not fit the keys.
    """
    batch, queries = embeds.shape[:2]
    past, keys, first = sizes(cache, queries, layer)
    if attention_mask is not None and attention_mask.dim() == 4:
        _check(attention_mask, (batch, None, queries, keys))
        mask = AdditiveMask.of(attention_mask, embeds.dtype, keep=True)
        assert mask is not None
        return mask
    query_at = torch.arange(queries, device=embeds.device, dtype=torch.int64) + past
    key_at = torch.arange(keys, device=embeds.device, dtype=torch.int64) + first
    away = query_at[:, None] - key_at[None, :]
    keep = (away >= 0 if causal else torch.ones_like(away, dtype=torch.bool))[None]
    inside = None if window is None else (away < window if causal else away.abs() <= window)
    if blocks is not None and blocks.bounded:
        keep = keep | blocks.together(query_at, key_at)
    if inside is not None:
        keep = keep & inside
    if blocks is not None and not blocks.bounded:
        keep = keep | blocks.together(query_at, key_at)
    if attention_mask is not None:
        keep = keep & _valid(attention_mask, batch, queries, past, keys, first).to(embeds.device)[:, None, :]
    elif text_positions is not None and cache is None:
        sequence = (torch.diff(text_positions, dim=-1) != 1).cumsum(-1)
        sequence = torch.nn.functional.pad(sequence, (1, 0)).to(embeds.device)
        keep = keep & (sequence[:, :, None] == sequence[:, None, :])
    values = torch.zeros(keep.shape, dtype=embeds.dtype, device=embeds.device).masked_fill(~keep, FILL)
    return AdditiveMask(values[:, None])


def no_mask(embeds: Tensor, cache: Any, layer: int = 0) -> AdditiveMask:
    """(1, 1, Q, K) of zeros: each query sees every key."""
    _, keys, _ = sizes(cache, embeds.shape[1], layer)
    return AdditiveMask(embeds.new_zeros(1, 1, embeds.shape[1], keys))


class Blocks(NamedTuple):
    """Blocks of tokens that see each other wherever they stand, such as those of an image.

    ids (B, positions) int64: the block of each token, counted from the start of the sequence, -1 for none; tokens after
    the last one are in none. bounded: not beyond the window.
    """

    ids: Tensor
    bounded: bool = True

    def together(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        """(B, Q, K) bool: query and key are of one block."""
        query, key = (self._at(places) for places in (query_at, key_at))
        return (query[:, :, None] == key[:, None, :]) & (query >= 0)[:, :, None]

    def _at(self, places: Tensor) -> Tensor:
        ids = self.ids.to(places.device)
        known = places < ids.shape[1]
        return ids[:, places.clamp(max=ids.shape[1] - 1)].masked_fill(~known, -1)


def sizes(cache: Any, queries: int, layer: int = 0) -> tuple[Any, int, int]:
    """(tokens before the call, keys during it, position of the first key) of an HF cache, a Past or None."""
    if cache is None:
        return 0, queries, 0
    keys, first = cache.get_mask_sizes(queries, layer)
    offset = getattr(cache, "get_query_offset", cache.get_seq_length)  # only some releases distinguish the two
    return offset(layer), keys, first


def padded_keys(attention_mask: Any, tokens: Tensor, cache: Any = None) -> Tensor | None:
    """(B or 1, past + S) bool of a 2-D mask with padding, else None: for a mask of 4 dimensions, or a mapping of such
    masks. `tokens` is (B, S) or (B, S, D).

    Raises InputError for a mask that does not fit, or masks all of the new tokens.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() == 4:
        return None
    batch, queries = tokens.shape[:2]
    past, keys, first = sizes(cache, queries)
    _check_padding(attention_mask, batch, queries, past, keys, first)
    if not bool((attention_mask[:, int(past) : int(past) + queries] != 0).any()):
        raise InputError(f"attention_mask {tuple(attention_mask.shape)} masks every new token of the batch; drop it")
    return key_padding(attention_mask, int(past), queries)


def key_padding(attention_mask: Tensor | None, past: int, queries: int) -> Tensor | None:
    """(B or 1, past + queries) bool of a 2-D mask with padding, else None."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    valid: Tensor = attention_mask[:, : past + queries] != 0
    return None if bool(valid.all()) else valid


def _valid(mask: Tensor, batch: int, queries: int, past: Any, keys: int, first: int) -> Tensor:
    """(B, keys) bool. A mask may be shorter than a preallocated cache: what it does not name is not there yet."""
    _check_padding(mask, batch, queries, past, keys, first)
    valid = mask != 0
    if mask.shape[1] < keys + first:
        valid = torch.nn.functional.pad(valid, (0, keys + first - mask.shape[1]))
    return valid[:, first : first + keys]


def _check_padding(mask: Tensor, batch: int, queries: int, past: Any, keys: int, first: int) -> None:
    if mask.dim() != 2:
        raise InputError(
            f"attention_mask is {mask.dtype} of shape {tuple(mask.shape)}; expected (batch, past + new tokens), or "
            "(batch, 1 or heads, queries, keys)"
        )
    given = mask.shape[1]
    if mask.shape[0] not in (1, batch) or not int(past) + queries <= given <= keys + first:
        raise InputError(
            f"attention_mask is {tuple(mask.shape)}, but the call has {batch} rows and {queries} tokens after {past} "
            f"in the cache: expected ({batch}, {int(past) + queries}), zero at padding"
        )


def _check(mask: Tensor, shape: tuple[int | None, ...]) -> None:
    if all(expected is None or got in (1, expected) for got, expected in zip(mask.shape, shape, strict=True)):
        return
    raise InputError(
        f"attention_mask is {tuple(mask.shape)}, but the call needs ({shape[0]}, 1 or heads, {shape[2]}, {shape[3]}): "
        "batch, heads, queries, keys with those of the cache"
    )
