# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of the layers: variants, kinds, the slots of their caches, the frequencies of rotary tables.

It owns reading these entries, which bundle.py writes. What a host makes of them is host.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder import host_data
from pyquant.decoder.kind import LayerKind
from pyquant.errors import CircleError


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


@dataclass(frozen=True)
class Variant:
    """Layers with one mask and one pair of rotary tables: the graph inputs `mask` and `tables` (cos, signed_sin), how
    many positions back a query sees (None: all), and the frequencies."""

    name: str
    mask: str
    tables: tuple[str, str]
    window: int | None
    rotary: RotaryTable


def variants_of(manifest: Mapping[str, Any]) -> dict[str, Variant]:
    """Name -> variant, of the manifest's host_data."""
    found = {}
    for entry in host_data.read(manifest)["variants"]:
        name, window = str(entry["name"]), entry.get("window")
        tables = (str(entry["cos"]), str(entry["signed_sin"]))
        rotary = RotaryTable.of(manifest[entry["rotary"]])
        found[name] = Variant(name, str(entry["mask"]), tables, None if window is None else int(window), rotary)
    return found


def kinds_of(manifest: Mapping[str, Any], variants: Mapping[str, Variant]) -> tuple[LayerKind, ...]:
    """The layers as the manifest's cache lists them; none without a cache. Raises CircleError for one of another
    variant."""
    found = []
    for index, each in enumerate(_entries(manifest)):
        name = str(each.get("variant", ""))
        if name not in variants:
            raise CircleError(f"cache.layers[{index}] is of variant {name!r}, host_data.variants has {list(variants)}")
        heads, size = int(each["kv_heads"]), int(each["head_dim"])
        found.append(LayerKind(heads, size, variants[name].window, each.get("shares"), name))
    return tuple(found)


def slots_of(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Variant -> slots of its layers' caches."""
    whole = int(manifest["cache"]["capacity"])
    own = (each for each in _entries(manifest) if each.get("shares") is None)
    return {str(each.get("variant", "")): int(each.get("capacity", whole)) for each in own}


def _entries(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    entries: Sequence[Mapping[str, Any]] = manifest["cache"]["layers"] if "cache" in manifest else ()
    return entries
