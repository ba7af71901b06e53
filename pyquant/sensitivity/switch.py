# SPDX-License-Identifier: Apache-2.0
"""Switches: the quantized sites of a converted tree, off and on one by one, without preparing anything again.

It owns putting single sites in the float phase and back; quantized weights stay in their caches. Which sites belong
together is groups.py, what is measured is measure.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from pyquant.site import Phase, Site, TreeState
from pyquant.spec import BlockSpec
from pyquant.wrap.base import QModule


class Switches:
    """The sites of `q` that have a grid, in tree order.

    Raises PhaseError before convert. While the `with` block of `off` runs, the tree computes something else: it must
    not be exported, saved or moved.
    """

    def __init__(self, q: QModule) -> None:
        q.require(Phase.QUANTIZED, "sensitivity")
        self._held: dict[Site, TreeState] = {
            site: site.state for site in q.all_sites() if site.scale is not None or isinstance(site.spec, BlockSpec)
        }
        self._float = TreeState(Phase.FLOAT, converted=True)
        self._biases: list[_Bias] = [
            _Bias(module, f"{name}_scale", scale, frozenset({module.site(first), module.site(second)}))
            for module in q.all_qmodules()
            for name, (first, second, *_) in module.BIASES.items()
            if isinstance(scale := getattr(module, f"{name}_scale", None), Tensor)
        ]
        self._biases_of: dict[Site, list[_Bias]] = {}
        for bias in self._biases:
            for site in bias.sites:
                self._biases_of.setdefault(site, []).append(bias)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that can be switched."""
        return tuple(self._held)

    @contextmanager
    def off(self) -> Iterator[None]:
        """All sites pass values while the block runs; afterwards they do as before."""
        try:
            for site in self._held:
                site.state = self._float
            for bias in self._biases:
                setattr(bias.module, bias.name, None)
            yield
        finally:
            for site, state in self._held.items():
                site.state = state
            for bias in self._biases:
                setattr(bias.module, bias.name, bias.scale)

    @contextmanager
    def on(self, sites: Iterable[Site]) -> Iterator[None]:
        """Inside `off`: these sites put values on their grids. A bias does when both sites that make its scale do."""
        chosen = set(sites)
        biases = {id(b): b for site in chosen for b in self._biases_of.get(site, ()) if b.sites <= chosen}.values()
        try:
            for site in chosen:
                site.state = self._held[site]
            for bias in biases:
                setattr(bias.module, bias.name, bias.scale)
            yield
        finally:
            for site in chosen:
                site.state = self._float
            for bias in biases:
                setattr(bias.module, bias.name, None)


@dataclass(frozen=True, eq=False)
class _Bias:
    """The scale of one bias: where it is kept, and the sites of the input and of the weight that make it."""

    module: QModule
    name: str
    scale: Tensor
    sites: frozenset[Site]
