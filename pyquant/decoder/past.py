# SPDX-License-Identifier: Apache-2.0
"""Past: the keys and values of one call as plain tensors, in the place where HF has a Cache.

It owns joining the cached tensors with those that a layer adds. Which tensors come in, and where the new ones go, is
known to the graphs (graphs.py) and to calibration (model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]


class Past:
    """`given`: layer -> (key, value), each (B, Hkv, past, head_dim), the last ones where a layer keeps fewer than
    another. The layers fill `new` with what they add."""

    def __init__(self, given: Mapping[int, KeyValue] | None = None) -> None:
        self.given = dict(given or {})
        self.new: dict[int, KeyValue] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeyValue:
        """As HF's Cache.update: past and new together. The new ones follow the past ones."""
        self.new[layer_idx] = (key, value)
        if layer_idx not in self.given:
            return key, value
        past_key, past_value = self.given[layer_idx]
        return torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The length of the past: that of the layer that keeps the most."""
        return max((int(key.shape[2]) for key, _ in self.given.values()), default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys there are once `query_length` are added, and which position the first one has."""
        past = self.get_seq_length()
        kept = int(self.given[layer_idx][0].shape[2]) if layer_idx in self.given else past
        return kept + query_length, past - kept
