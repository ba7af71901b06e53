# SPDX-License-Identifier: Apache-2.0
"""What each site of a converted tree does to the float model's own values: range, clipped share, histogram, SQNR.

It owns the one run with every site listening. Which sites are worth showing is data.py, drawing is figures.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyquant import ops
from pyquant.qparams import QParams
from pyquant.site import Site
from pyquant.spec import BlockSpec, QuantSpec
from pyquant.wrap.attention import FILL, AttentionCore
from pyquant.wrap.base import QModule

BINS = 2048
SHOWN_BINS = 96


@dataclass(frozen=True)
class SiteReport:
    """One site against the float values that reached it.

    low, high: of the values. grid_low, grid_high: ends of the grid (the outermost of all channels). scales: how many;
    scale, zero_point: the first and, with several, the range as text. clipped: share of the values beyond their grid by
    more than half a step. sqnr: of this site alone, in dB. edges, counts: a histogram of the finite values.
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


class Listener:
    """Listens at every site that has a grid while batches run in the float phase."""

    def __init__(self, q: QModule) -> None:
        self._heard: dict[Site, _Heard] = {}
        self._masked: set[Site] = set()
        for module in q.all_qmodules():
            for name, site in module.own_sites():
                qparams = site.qparams
                if qparams is not None or isinstance(site.spec, BlockSpec):
                    self._heard[site] = _Heard(qparams, constant=site.role.is_constant, spec=site.spec)
                    if isinstance(module, AttentionCore) and name == "masked_logits":
                        self._masked.add(site)  # what is masked saturates on purpose

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, what passes a site is measured."""
        handles = [site.register_forward_hook(self._passed) for site in self._heard]
        for site in self._heard:
            site.__dict__["constant"] = self._constant(site)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for site in self._heard:
                del site.__dict__["constant"]

    def reports(self) -> tuple[SiteReport, ...]:
        """Of the sites that saw finite values, in tree order."""
        return tuple(heard.report(site) for site, heard in self._heard.items() if heard.elements)

    def _passed(self, site: Any, args: tuple[Any, ...], output: Tensor) -> None:
        self._heard[site].add(output[output > FILL / 2] if site in self._masked else output)

    def _constant(self, site: Site) -> Callable[[Tensor], Tensor]:
        plain = type(site).constant

        def constant(value: Tensor) -> Tensor:
            if not self._heard[site].elements:  # once is enough, it does not change
                self._heard[site].add(value)
            return plain(site, value)

        return constant


@dataclass
class _Heard:
    qparams: QParams | None  # None for blocks, which have their scales among the data
    constant: bool
    spec: QuantSpec | None
    elements: int = 0
    clipped: int = 0
    signal: float = 0.0
    noise: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    edges: Tensor = field(default_factory=lambda: torch.tensor([torch.inf, -torch.inf]))
    count: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take values into the statistics."""
        x = x.detach().float().cpu().contiguous()
        if x.numel() == 0:
            return
        if isinstance(self.spec, BlockSpec):
            rounded, steps = ops.fake_quantize_blocks(x, self.spec.bits), torch.tensor(math.inf)
        else:
            rounded, steps = self._rounded(x)
        error = (x.double() - rounded.double()).nan_to_num()
        self.elements += x.numel()
        self.signal += float(x.double().nan_to_num().square().sum())
        self.noise += float(error.square().sum())
        self.clipped += int((error.abs() > 0.501 * steps).sum())
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        ops.observe_histogram_(self.counts, self.edges, self.count, x)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` as Site quantizes it, and the step at each element."""
        assert self.qparams is not None, "only blocks have no qparams"
        spec, scale, zero_point = self.qparams.spec, self.qparams.scale.cpu(), self.qparams.zero_point.cpu()
        qmin = spec.qmin if self.constant else spec.dtype.qmin
        axis, group = self.qparams.axis, self.qparams.group
        rounded = ops.fake_quantize(x, scale, zero_point, axis, group, qmin, spec.qmax)
        return rounded, _along(scale, x, axis, group).double()

    def _grid(self) -> tuple[float, float, int, str, str]:
        """Outermost ends, how many scales, and scales and zero points in words; blocks cover what they hold."""
        if self.qparams is None:
            return self.low, self.high, self.elements // 32, "a block of 32 each", "0"
        spec, scale, zero_point = self.qparams.spec, self.qparams.scale.double(), self.qparams.zero_point.double()
        low, high = (spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale
        steps, zeros = (_span(t.flatten().tolist()) for t in (scale, zero_point))
        return float(low.min()), float(high.max()), scale.numel(), steps, zeros

    def report(self, site: Site) -> SiteReport:
        """The numbers of one site."""
        sqnr = math.inf if self.noise == 0 else 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
        edges, counts = _shown(self.counts, self.edges, self.low, self.high)
        return SiteReport(
            site.path,
            site.role.value,
            str(self.spec),
            self.elements,
            self.low,
            self.high,
            *self._grid(),
            self.clipped / self.elements,
            sqnr,
            edges,
            counts,
        )


def _along(scale: Tensor, x: Tensor, axis: int | None, group: int) -> Tensor:
    """The scale of each element, in a shape that broadcasts against x."""
    if axis is None:
        return scale
    if group:
        return scale.repeat_interleave(group, dim=axis % x.dim())
    shape = [1] * x.dim()
    shape[axis % x.dim()] = -1
    return scale.reshape(shape)


def _span(values: Iterable[float]) -> str:
    values = list(values)
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"


def _shown(counts: Tensor, edges: Tensor, low: float, high: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The histogram cut to the range of the values, in about SHOWN_BINS bars."""
    first, last = (float(v) for v in edges)
    if not (math.isfinite(first) and math.isfinite(last)) or last <= first:
        return (), ()
    width = (last - first) / counts.numel()
    begin = min(max(int((low - first) / width), 0), counts.numel() - 1)
    end = min(max(math.ceil((high - first) / width), begin + 1), counts.numel())
    step = max(1, math.ceil((end - begin) / SHOWN_BINS))
    starts = range(begin, end, step)
    bars = tuple(int(counts[start : min(start + step, end)].sum()) for start in starts)
    return tuple(first + width * start for start in [*starts, min(starts[-1] + step, counts.numel())]), bars
