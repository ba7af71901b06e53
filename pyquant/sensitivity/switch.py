# SPDX-License-Identifier: Apache-2.0
"""Switches: turns single sites of a converted tree off and on, without another prepare.

It owns putting single sites in the float phase and back; quantized weights stay in their caches, the scale of a bias
follows the sites of its input and weight, and a weight that was decided is its integers when on, and what it was before
when off. Grouping sites is groups.py, measuring is measure.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pyquant.site import Phase, Site
from pyquant.spec import BlockSpec
from pyquant.undecided import Undecided
from pyquant.wrap.base import QModule, phase


class Switches:
    """The sites of `q` that have a grid, in tree order.

    reference, settled, errors: as of Undecided.

    Raises PhaseError before convert. While the `with` block of `off` runs, the tree computes other values: it must not
    be exported.
    """

    def __init__(self, q: QModule, reference: QModule | None = None) -> None:
        q.require(Phase.QUANTIZED, "sensitivity")
        self.sites: tuple[Site, ...] = tuple(
            site for site in q.all_sites() if site.scale is not None or isinstance(site.spec, BlockSpec)
        )
        self._undecided = Undecided(q, reference)
        self.settled = self._undecided.settled

    @contextmanager
    def off(self) -> Iterator[None]:
        """All sites pass values while the block runs, weights those of `reference`; afterwards all is as before."""
        with _all_in(Phase.FLOAT, self.sites), self._undecided.passing():
            yield

    @contextmanager
    def on(self, sites: Iterable[Site]) -> Iterator[None]:
        """Inside `off`: these sites quantize. A bias is quantized when both sites of its scale are."""
        with _all_in(Phase.QUANTIZED, sites):
            yield


@contextmanager
def _all_in(wanted: Phase, sites: Iterable[Site]) -> Iterator[None]:
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(phase(site, wanted))
        yield
