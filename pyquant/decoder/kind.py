# SPDX-License-Identifier: Apache-2.0
"""LayerKind: what differs from layer to layer of one decoder: heads, window, whose keys it reads, rotary table.

It owns the names that graph inputs get from it. What a layer computes is layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerKind:
    """One decoder layer's attention.

    kv_heads, head_dim: of its keys and values. window: how many positions back a query sees, itself included; None:
    all. shares: the earlier layer whose keys and values it reads; None: it has its own, and a place in the cache.
    variant: which mask and which rotary tables it takes; layers of one variant have one window and one head_dim, and
    read keys of that variant only. ahead: its mask lets a query see later positions too (blocks of image tokens).
    """

    kv_heads: int
    head_dim: int
    window: int | None = None
    shares: int | None = None
    variant: str = ""
    ahead: bool = False

    def kept(self, past: int) -> int:
        """How many of `past` tokens the cache of such a layer keeps: all, or the last ones that a window needs."""
        return past if self.window is None else min(past, self.window - 1)

    @property
    def mask(self) -> str:
        """The graph input with its mask: `attention_mask`, or `attention_mask_sliding` of a named variant."""
        return named("attention_mask", self.variant)

    @property
    def tables(self) -> tuple[str, str]:
        """The graph inputs with its rotary tables: `cos` and `signed_sin`, with the variant's name behind them."""
        return named("cos", self.variant), named("signed_sin", self.variant)


def named(name: str, variant: str) -> str:
    """The name of a graph input or manifest entry of one variant."""
    return f"{name}_{variant}" if variant else name


def variants(kinds: Sequence[LayerKind]) -> Mapping[str, LayerKind]:
    """Variant -> its first layer's kind, in the order of the layers.

    Raises ValueError when layers of one variant differ in what a mask or a rotary table depends on, or when a layer
    shares keys of one that comes later, that has none of its own, or that is of another variant or shape.
    """
    found: dict[str, LayerKind] = {}
    for index, kind in enumerate(kinds):
        first = found.setdefault(kind.variant, kind)
        if (first.window, first.head_dim, first.ahead) != (kind.window, kind.head_dim, kind.ahead):
            raise ValueError(
                f"layer {index} is of variant {kind.variant!r} with window {kind.window} and head_dim {kind.head_dim}; "
                f"the variant has window {first.window} and head_dim {first.head_dim}"
            )
        if kind.shares is None:
            continue
        source = kinds[kind.shares] if 0 <= kind.shares < index else None
        if source is None or source.shares is not None:
            raise ValueError(f"layer {index} reads the keys of layer {kind.shares}, which has none before it")
        if source.variant != kind.variant:
            raise ValueError(
                f"layer {index} is of variant {kind.variant!r} and reads the keys of layer {kind.shares}, which is of "
                f"variant {source.variant!r}: its keys are rotated by other tables, and a cache may keep fewer of them"
            )
        if (source.kv_heads, source.head_dim) != (kind.kv_heads, kind.head_dim):
            raise ValueError(
                f"layer {index} reads the keys of layer {kind.shares}, whose heads are {source.kv_heads} x "
                f"{source.head_dim}, and expects {kind.kv_heads} x {kind.head_dim}"
            )
    return found
