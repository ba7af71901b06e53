# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of the layers: their kinds, the slots of their caches, the frequencies of their rotary tables.

It owns reading these entries, which bundle.py writes. What a host makes of them is host.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.kind import LayerKind


@dataclass(frozen=True)
class RotaryTable:
    """inv_freq (head_dim / 2,), the factor of cos and sin, and the position axis that drives each frequency."""

    inv_freq: Tensor
    scaling: float
    axis: Sequence[int] | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> RotaryTable:
        """Of the manifest's entry of one variant."""
        frequencies = torch.tensor(entry["inv_freq"], dtype=torch.float32, device="cpu")
        return cls(frequencies, float(entry["attention_scaling"]), entry.get("axis"))

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (axes, B, S) -> cos and signed_sin, each (B, S, head_dim).

        Angles are products in float32; their cosines and sines are computed in float64 and rounded to float32 once, so
        that hosts on other machines and in other languages (csrc/host/rotary.cc) have the same bits.
        """
        axis = (
            torch.zeros(len(self.inv_freq), dtype=torch.int64, device="cpu")
            if self.axis is None
            else torch.tensor(self.axis, dtype=torch.int64, device="cpu")
        )
        angles = (positions.float()[axis].permute(1, 2, 0) * self.inv_freq).double()
        cos, sin = angles.cos().float() * self.scaling, angles.sin().float() * self.scaling
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def kinds_of(manifest: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    """The layers as the manifest's cache lists them."""
    return tuple(
        LayerKind(
            int(each["kv_heads"]),
            int(each["head_dim"]),
            each.get("window"),
            each.get("shares"),
            str(each.get("variant", "")),
        )
        for each in _entries(manifest)
    )


def slots_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Variant -> slots of its layers' caches; bundles before append graphs have as many in every layer."""
    whole = int(manifest["cache"]["capacity"])
    own = (each for each in _entries(manifest) if each.get("shares") is None)
    return {str(each.get("variant", "")): int(each.get("capacity", whole)) for each in own}


def _entries(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The layers of the cache; bundles of pyquant 0.1 had one shape for all."""
    cache = manifest["cache"]
    entries: Sequence[Mapping[str, Any]] = cache.get("layers") or [cache] * int(manifest["num_hidden_layers"])
    return entries
