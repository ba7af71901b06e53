# SPDX-License-Identifier: Apache-2.0
"""The bit widths of sites, and the policy rules that make some of them wider.

It owns the mean bit width and the wide formats. Choosing the sites is result.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyquant.policy import ObserverSpec, Policy, Rule, literal
from pyquant.role import Role
from pyquant.spec import BlockSpec, Granularity, IntType, PerAxis, PerTensor, QuantSpec

WIDTHS = (8, 16)  # of the symmetric types that a site can be made


@dataclass(frozen=True)
class SiteFormat:
    """A quantized site by path and role, and its format."""

    path: str
    role: Role
    spec: QuantSpec

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"path": self.path, "role": self.role.value, "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SiteFormat:
        """Inverse of `to_dict`."""
        return cls(data["path"], Role.parse(data["role"]), QuantSpec.from_dict(data["spec"]))


@dataclass(frozen=True)
class Part:
    """One weight, constant or activation: how many numbers, and in how many bits each."""

    elements: int
    bits: int
    constant: bool

    def total(self, width: int = 0) -> int:
        """Bits of all its numbers when they are at least `width` wide."""
        return max(width, self.bits) * self.elements


@dataclass(frozen=True)
class Bits:
    """Mean bit widths: over everything, over weights and constants (by parameter), over activations (by element)."""

    mean: float
    weights: float
    activations: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} bits (weights {self.weights:.3f}, activations {self.activations:.3f})"


def mean_bits(parts: Iterable[tuple[Part, int]]) -> Bits:
    """The means over parts, each at least as wide as its number."""
    elements, bits = {True: 0, False: 0}, {True: 0, False: 0}
    for part, width in parts:
        elements[part.constant] += part.elements
        bits[part.constant] += part.total(width)

    def mean(*kinds: bool) -> float:
        count = sum(elements[kind] for kind in kinds)
        return sum(bits[kind] for kind in kinds) / count if count else 0.0

    return Bits(mean(True, False), mean(True), mean(False))


def widened(policy: Policy, widths: Iterable[tuple[SiteFormat, int]]) -> Policy:
    """`policy` and, after its rules, one for each site that gets wider: symmetric, granularity as before.

    A range that the policy fixed or takes from a percentile stays so; a searched one (mse) becomes minmax, because a
    wide grid gains nothing from a smaller range.
    """
    rules = []
    for site, width in widths:
        if site.spec.dtype.bits >= width:
            continue
        before = policy.choose(site.path, site.role).rule
        keep = before is not None and before.observer.kind != "mse"
        rules.append(
            Rule(
                literal(site.path),
                role=site.role,
                spec=QuantSpec(IntType(width, signed=True), symmetric=True, granularity=_granularity(site)),
                observer=before.observer if keep and before is not None else ObserverSpec(),
            )
        )
    return Policy((*policy.rules, *rules), f"{policy.name}-mixed" if rules else policy.name)


def _granularity(site: SiteFormat) -> Granularity:
    """As before; in place of blocks, per channel for a kernel and per tensor for a table, which every target has."""
    if not isinstance(site.spec, BlockSpec):
        return site.spec.granularity
    return PerAxis(0) if site.role is Role.WEIGHT else PerTensor()
