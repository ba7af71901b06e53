# SPDX-License-Identifier: Apache-2.0
"""A site of a report: what trace.sites measured on the float model's values, as the page shows it.

It owns this text. Which sites are worth showing is data.py, drawing is figures.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyquant.trace import SiteRecord


@dataclass(frozen=True)
class SiteReport:
    """One site, measured on the float values that reached it.

    low, high: of the values. grid_low, grid_high: ends of the grid (the outermost of all channels; blocks cover all
    their values). scales: how many; scale, zero_point: as text, the least and the largest of several. clipped: share of
    the values beyond their grid by more than half a step. sqnr: of this site alone, in dB. edges, counts: a histogram
    of the finite values.
    """

    path: str
    role: str
    format: str
    elements: int
    low: float
    high: float
    grid_low: float
    grid_high: float
    scales: int
    scale: str
    zero_point: str
    clipped: float
    sqnr: float
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, record: SiteRecord) -> SiteReport | None:
        """None for a float site, and for one without a finite value."""
        if record.sqnr is None or record.low is None or record.high is None or record.spec == "float":
            return None
        ends = record.grid or (record.low, record.high)
        return cls(
            record.path,
            record.role,
            record.spec,
            record.elements,
            record.low,
            record.high,
            *ends,
            record.scales,
            "a block of 32 each" if record.scale is None else _span(record.scale),
            "0" if record.zero_point is None else _span(record.zero_point),
            record.clipped or 0.0,
            record.sqnr,
            record.edges,
            record.counts,
        )


def _span(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
