# SPDX-License-Identifier: Apache-2.0
"""The error of each site: the values that pass each quantization point of a converted tree, and what its grid changes.

It owns the measurement. The table is render.py, the report page is pyquant.reporter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyquant import ops
from pyquant.batch import call
from pyquant.errors import PhaseError
from pyquant.metrics import Deviation
from pyquant.ops.reference import spread
from pyquant.site import Clip, Phase, Site
from pyquant.trace.errors import TraceError
from pyquant.trace.record import parse
from pyquant.wrap.attention import FILL, AttentionCore
from pyquant.wrap.base import QModule, phase

FORMAT = "pyquant-sites-1"
FLOAT = "float"
BINS = 2048
SHOWN_BINS = 96


@dataclass(frozen=True)
class SiteRecord:
    """One site over all batches.

    spec: its format as text, `float` for none. scale, zero_point: (least, largest) over channels or groups; grid: the
    least and largest value of any of their grids. low, high: the observed range. calls, elements: how often, and how
    many finite values; left_out: values that saturate on purpose (a mask's), which are in no other number.
    clipped: share of the elements more than half a step outside the grid. sqnr: 10 log10(sum x^2 / sum (x - q(x))^2) of
    this site alone, in dB (infinite when nothing was changed). max_error: max|x - q(x)|.
    scales: how many grids it has (channels, groups, blocks). edges, counts: a histogram, if requested.
    """

    path: str
    role: str
    spec: str
    scale: tuple[float, float] | None = None
    zero_point: tuple[int, int] | None = None
    grid: tuple[float, float] | None = None
    calls: int = 0
    elements: int = 0
    nonfinite: int = 0
    left_out: int = 0
    low: float | None = None
    high: float | None = None
    clipped: float | None = None
    sqnr: float | None = None
    max_error: float | None = None
    scales: int = 0
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def used(self) -> float | None:
        """Share of the grid that the observed range covers, at most 1; None for a float or unreached site."""
        if self.grid is None or self.low is None or self.high is None:
            return None
        (bottom, top), width = self.grid, self.grid[1] - self.grid[0]
        return max(0.0, min(self.high, top) - max(self.low, bottom)) / width if width > 0 else None


@dataclass(frozen=True)
class SiteTrace:
    """The sites of a tree, in the order in which values reached them; those without values are last."""

    model: str
    batches: int
    records: tuple[SiteRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[SiteRecord]:
        return iter(self.records)

    def __getitem__(self, path: str) -> SiteRecord:
        """The record of a site by its path. Raises KeyError."""
        for record in self.records:
            if record.path == path:
                return record
        raise KeyError(f"no site {path!r} among {len(self.records)}; paths look like {self.records[0].path!r}")

    def worst(self, count: int = 10) -> tuple[SiteRecord, ...]:
        """The `count` quantized sites with the lowest SQNR, the lowest first."""
        measured = [record for record in self.records if record.sqnr is not None and record.spec != FLOAT]
        return tuple(sorted(measured, key=lambda record: record.sqnr or 0.0)[:count])

    def to_json(self) -> str:
        """All of it; infinite numbers as text. Equal traces give equal text."""
        rows = [{k: str(v) if v in (math.inf, -math.inf) else v for k, v in asdict(r).items()} for r in self.records]
        data = {"format": FORMAT, "model": self.model, "batches": self.batches, "sites": rows}
        return json.dumps(data, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SiteTrace:
        """The inverse of `to_json`. Raises TraceError for anything else."""
        data = parse(text, FORMAT)
        try:
            return cls(data["model"], data["batches"], tuple(_record(row) for row in data["sites"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"sites whose JSON is not as to_json writes it: {error!r}") from error


def sites(q: QModule, batches: object, *, on: Phase = Phase.QUANTIZED, histograms: bool = False) -> SiteTrace:
    """Run a converted tree on batches and record each of its sites, weights and other constants included.

    on: QUANTIZED measures each site with all sites before it quantized; FLOAT with the values of the float model.
    histograms: keep one of the values of each site.
    batches: a mapping (keyword arguments) or a tensor is one batch; any other iterable is many, each a mapping, a tuple
    or list (positional), or a tensor. Raises PhaseError before convert, TraceError for no batches.
    """
    if not hasattr(q, "all_sites"):
        raise PhaseError(f"sites takes the tree that pyquant.prepare returned, converted; got {type(q).__name__}")
    q.require(Phase.QUANTIZED, "trace.sites")
    if not isinstance(batches, (Mapping, Tensor)) and not isinstance(batches, Iterable):
        raise TraceError(f"sites takes batches, got one {type(batches).__name__}")
    given = [batches] if isinstance(batches, (Mapping, Tensor)) else batches
    count = 0
    with torch.no_grad(), phase(q, on), watching(q, histograms=histograms) as watch:
        for batch in given:
            call(q, batch)
            count += 1
    if not count:
        raise TraceError("sites got no batches: the iterable is empty (or a generator that was used up before)")
    return SiteTrace(type(q).__name__, count, watch.records())


class Watch:
    """The measurements of `watching` so far."""

    def __init__(self, q: QModule, histograms: bool) -> None:
        masked = {m.site("masked_logits") for m in q.all_qmodules() if isinstance(m, AttentionCore)}
        self.gauges = {
            id(site): _Gauge(site, site in masked, _Histogram() if histograms else None) for site in q.all_sites()
        }
        self.reached: dict[int, None] = {}

    def records(self) -> tuple[SiteRecord, ...]:
        """One for each site, in the order in which values reached them; those without values are last."""
        order = [*self.reached, *(key for key in self.gauges if key not in self.reached)]
        return tuple(self.gauges[key].record() for key in order)


@contextmanager
def watching(q: QModule, *, histograms: bool = False) -> Iterator[Watch]:
    """While the block runs a converted tree, quantized or in float, each of its sites is measured."""
    watch = Watch(q, histograms)
    with _watching(watch.gauges, watch.reached):
        yield watch


@contextmanager
def _watching(gauges: Mapping[int, _Gauge], reached: dict[int, None]) -> Iterator[None]:
    """Each gauge measures the values of its site."""

    def tap(site: Site, x: Tensor, out: Tensor, *, clip: Clip | None, observed: Tensor | None, constant: bool) -> None:
        reached[id(site)] = None
        gauge = gauges[id(site)]
        if not (constant and gauge.calls):  # a constant is the same each time
            gauge.see(x, _rounded(site, x, out, clip, constant), clip, observed)

    with ExitStack() as stack:
        for gauge in gauges.values():
            stack.enter_context(gauge.site.tap(tap))
        yield


@torch.no_grad()
def _rounded(site: Site, x: Tensor, out: Tensor, clip: Clip | None, constant: bool) -> Tensor:
    """The quantized value of a site: its output, unless the run is in float."""
    return out if site.phase is Phase.QUANTIZED else site.quantize(x, clip=clip, constant=constant)


class _Histogram:
    """A histogram of finite values, whose range grows with them."""

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
        self._edges = torch.tensor([torch.inf, -torch.inf], dtype=torch.float32, device="cpu")
        self._count = torch.zeros(2, dtype=torch.int64, device="cpu")

    def add(self, values: Tensor) -> None:
        ops.observe_histogram_(self._counts, self._edges, self._count, values.float().cpu().contiguous())

    def shown(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Edges and counts from the first value to the last, in about SHOWN_BINS bars."""
        first, last = (float(v) for v in self._edges)
        filled = self._counts.nonzero().flatten().tolist()
        if not filled or not (math.isfinite(first) and math.isfinite(last)) or last <= first:
            return (), ()
        width, begin, end = (last - first) / BINS, filled[0], filled[-1] + 1
        step = max(1, math.ceil((end - begin) / SHOWN_BINS))
        starts = range(begin, end, step)
        bars = tuple(int(self._counts[start : min(start + step, end)].sum()) for start in starts)
        return tuple(first + width * start for start in [*starts, min(starts[-1] + step, end)]), bars


@dataclass
class _Gauge:
    """The sums of one site."""

    site: Site
    masked: bool = False  # logits with a mask's FILL among them, which saturates on purpose
    histogram: _Histogram | None = None
    calls: int = 0
    nonfinite: int = 0
    left_out: int = 0
    clipped: int = 0
    deviation: Deviation = field(default_factory=Deviation)
    _ends: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def see(self, x: Tensor, out: Tensor, clip: Any = None, observed: Tensor | None = None) -> None:
        """Add `x`, the input of the site, and `out`, its output; `clip` and `observed` as Site.forward takes them."""
        x, out = x.detach(), out.detach()
        self.calls += 1
        x = x if clip is None or clip == (None, None) else torch.clamp(x, *clip)
        finite = torch.isfinite(x)
        self.nonfinite += x.numel() - int(finite.sum())
        kept = finite & (x > FILL / 2) if self.masked else finite
        if observed is not None and bool((usual := torch.isfinite(observed)).any()):
            least, most = torch.aminmax(observed[usual])
            kept = kept & (x >= least) & (x <= most)
        self.left_out += int(finite.sum()) - int(kept.sum())
        low, high = self._grid_of(x)
        clipped = None if low is None or high is None else (x < low) | (x > high)
        everything = bool(kept.all())
        if clipped is not None:
            self.clipped += int((clipped if everything else clipped & kept).sum())
        values, left = (x, out) if everything else (x[kept], out[kept])
        if not values.numel():
            return
        if self.histogram is not None:
            self.histogram.add(values)
        self.deviation.add(values, left)

    def _grid_of(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The ends of the grid and half a step beyond, in shapes that broadcast with `x`."""
        qparams = self.site.qparams
        if qparams is None:
            return None, None
        scale, zero_point = (
            spread(t.double(), x, qparams.axis, qparams.group) for t in (qparams.scale, qparams.zero_point)
        )
        return (self._least() - zero_point - 0.5) * scale, (qparams.spec.qmax - zero_point + 0.5) * scale

    def _least(self) -> int:
        """The least integer: activations saturate at the end of their type, constants at the end of their grid."""
        spec = self.site.spec
        assert spec is not None, f"{self.site.path!r} is float"
        return spec.qmin if self.site.role.is_constant else spec.dtype.qmin

    def record(self) -> SiteRecord:
        site, qparams, deviation = self.site, self.site.qparams, self.deviation
        seen = deviation.elements > 0
        found: dict[str, Any] = {}
        if qparams is not None:
            scale, zero_point = qparams.scale.double(), qparams.zero_point.double()
            found = {
                "scales": scale.numel(),
                "scale": (float(scale.min()), float(scale.max())),
                "zero_point": (int(zero_point.min()), int(zero_point.max())),
                "grid": (
                    float(((self._least() - zero_point) * scale).min()),
                    float(((qparams.spec.qmax - zero_point) * scale).max()),
                ),
                "clipped": self.clipped / deviation.elements if seen else None,
            }
        elif site.spec is not None:  # a format of blocks, each with its own scale
            found = {"scales": deviation.elements // ops.BLOCK_LENGTH}
        if seen and self.histogram is not None:
            found["edges"], found["counts"] = self.histogram.shown()
        return SiteRecord(
            site.path,
            site.role.value,
            str(site.spec) if site.spec is not None else FLOAT,
            calls=self.calls,
            elements=deviation.elements,
            nonfinite=self.nonfinite,
            left_out=self.left_out,
            low=deviation.low if seen else None,
            high=deviation.high if seen else None,
            sqnr=deviation.sqnr if seen else None,
            max_error=deviation.max_abs if seen else None,
            **found,
        )


def _record(row: Mapping[str, Any]) -> SiteRecord:
    values: dict[str, Any] = dict(row)
    for name in ("scale", "zero_point", "grid", "edges", "counts"):
        values[name] = None if values[name] is None else tuple(values[name])
    for name in ("sqnr", "max_error"):
        values[name] = float(values[name]) if isinstance(values[name], str) else values[name]
    return SiteRecord(**values)
