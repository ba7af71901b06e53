# SPDX-License-Identifier: Apache-2.0
"""Switches: the quantized sites of a converted tree, off and on one by one, without preparing anything again.

It owns putting single sites in the float phase and back; quantized weights stay in their caches, and a bias follows the
sites of its input and weight by itself. Which sites belong together is groups.py, what is measured is measure.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pyquant.site import Phase, Site
from pyquant.spec import BlockSpec
from pyquant.wrap.base import QModule, phase


class Switches:
    """The sites of `q` that have a grid, in tree order.

    Raises PhaseError before convert. While the `with` block of `off` runs, the tree computes something else: it must
    not be exported.
    """

    def __init__(self, q: QModule) -> None:
        q.require(Phase.QUANTIZED, "sensitivity")
        self.sites: tuple[Site, ...] = tuple(
            site for site in q.all_sites() if site.scale is not None or isinstance(site.spec, BlockSpec)
        )

    @contextmanager
    def off(self) -> Iterator[None]:
        """All sites pass values while the block runs; afterwards they do as before."""
        with _all_in(Phase.FLOAT, self.sites):
            yield

    @contextmanager
    def on(self, sites: Iterable[Site]) -> Iterator[None]:
        """Inside `off`: these sites put values on their grids. A bias does when both sites that make its scale do."""
        with _all_in(Phase.QUANTIZED, sites):
            yield


@contextmanager
def _all_in(wanted: Phase, sites: Iterable[Site]) -> Iterator[None]:
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(phase(site, wanted))
        yield
