# SPDX-License-Identifier: Apache-2.0
"""CacheState: the cached keys and values of a batch on the host's side, and which token stands in which slot.

It owns the slots. What a layer may see of them is host.py's to say, how many it has is the manifest's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]


@dataclass
class CacheState:
    """The cache of a batch: `lengths` (B,) tokens of each row, `deltas` (B, 1) from there to positions, and layer ->
    (keys, values), each (B, Hkv, slots, head_dim).

    The token at place p of a row (its p-th, from 0) stands in slot p modulo the slots of the layer. So a layer with a
    window keeps the last ones, and one with a slot for every token keeps all.
    """

    lengths: Tensor
    deltas: Tensor
    layers: dict[int, KeyValue]

    def places(self, slots: int) -> Tensor:
        """(B, slots): which place each slot holds, negative where it is empty."""
        last = self.lengths[:, None] - 1
        return last - (last - torch.arange(slots, dtype=torch.int64, device="cpu")) % slots

    def add(self, new: Mapping[int, KeyValue], counts: Tensor) -> None:
        """Write the first `counts` (B,) of the new tokens of each row behind those that are there: layer -> (keys,
        values), each (B, Hkv, S, head_dim)."""
        for row, (length, count) in enumerate(zip(self.lengths.tolist(), counts.tolist(), strict=True)):
            for layer, pair in new.items():
                slots = self.layers[layer][0].shape[2]
                kept = torch.arange(max(0, count - slots), count, dtype=torch.int64, device="cpu")
                for cached, made in zip(self.layers[layer], pair, strict=True):
                    cached[row, :, (length + kept) % slots] = made[row, :, kept]
        self.lengths = self.lengths + counts

    def copy(self) -> CacheState:
        """Its own tensors with the same contents."""
        layers = {layer: (key.clone(), value.clone()) for layer, (key, value) in self.layers.items()}
        return CacheState(self.lengths.clone(), self.deltas.clone(), layers)
