# SPDX-License-Identifier: Apache-2.0
"""The histogram and the range searches over it in plain torch operations; see reference.py.

It owns sums in the order that the CPU kernels define, so that both choose the same candidate. Small tensors are
computed on the CPU.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops.histogram import check_histogram, check_percentiles, check_same_bins
from pyquant.ops.reference import choose_qparams, count_elements_, fake_quantize, minmax, wide

_LIMIT = 2.0**120
LEAST = -126


class Bins:
    """Bin b of n holds [(first + b) * 2^exponent, (first + b + 1) * 2^exponent)."""

    def __init__(self, exponent: int, first: int) -> None:
        self.exponent, self.first = exponent, first

    def edge(self, bin: float) -> float:
        return math.ldexp(self.first + bin, self.exponent)

    @classmethod
    def read(cls, op: str, range: Tensor, bins: int) -> Bins | None:
        """The bins of a range; None before any data."""
        lo, hi = range.tolist()
        if not lo <= hi:
            return None
        fraction, exponent = math.frexp((hi - lo) / bins)
        if lo <= 0.0 and math.isfinite(hi - lo) and fraction == 0.5:
            found = cls(exponent - 1, math.floor(math.ldexp(lo, 1 - exponent)))
            if found.edge(0) == lo and found.edge(bins) == hi:
                return found
        raise OpArgumentError(
            f"{op}: range is [{lo:g}, {hi:g}], which no histogram of {bins} bins has; "
            "start it at [inf, -inf] and leave it to this operator"
        )

    @classmethod
    def narrowest(cls, lo: float, hi: float, least: int, bins: int) -> Bins:
        lo, hi = max(min(lo, 0.0), -_LIMIT), min(max(hi, 0.0), _LIMIT)
        exponent = least
        while math.floor(math.ldexp(hi, -exponent)) - math.floor(math.ldexp(lo, -exponent)) >= bins:
            exponent += 1
        return cls(exponent, math.floor(math.ldexp(lo, -exponent)))


def observe_histogram_(counts: Tensor, range: Tensor, count: Tensor, x: Tensor) -> None:
    op = "observe_histogram_"
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    check_histogram(op, counts, range)
    _checks.check_state(op, "count", count, torch.int64, 2)
    lo, hi = (t.item() for t in minmax(x, None, 0))
    old = Bins.read(op, range, counts.numel())
    if lo <= hi:
        where = grow_(counts, range, old, lo, hi, LEAST)
        values = wide(x[torch.isfinite(x)]).clamp(-_LIMIT, _LIMIT)
        index = (
            torch.ldexp(values, torch.tensor(-where.exponent, dtype=torch.int64, device="cpu")).floor().long()
            - where.first
        )
        counts += torch.bincount(index, minlength=counts.numel()).to(counts.device)
    count_elements_(count, x)


def merge_histogram_(counts: Tensor, range: Tensor, other_counts: Tensor, other_range: Tensor) -> None:
    op = "merge_histogram_"
    check_histogram(op, counts, range)
    check_histogram(op, other_counts, other_range)
    check_same_bins(op, counts, other_counts)
    old, other = Bins.read(op, range, counts.numel()), Bins.read(op, other_range, counts.numel())
    if other is not None:
        where = grow_(counts, range, old, *_extent(other_counts, other), other.exponent)
        counts += _moved(other_counts, other, where)


def histogram_percentile(counts: Tensor, range: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    op = "histogram_percentile"
    check_percentiles(op, lower, upper)
    check_histogram(op, counts, range)
    where, numbers = Bins.read(op, range, counts.numel()), counts.tolist()
    total = sum(numbers)
    if where is None or total == 0:
        return range.new_full((), torch.nan), range.new_full((), torch.nan)

    def value_at(percent: float) -> Tensor:
        rank, below, bin = percent / 100.0 * total, 0, 0
        while bin + 1 < len(numbers) and (below + numbers[bin] == 0 or below + numbers[bin] < rank):
            below += numbers[bin]
            bin += 1
        return range.new_tensor(where.edge(bin + (rank - below) / numbers[bin]))

    return value_at(lower), value_at(upper)


def histogram_mse_range(counts: Tensor, range: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    op = "histogram_mse_range"
    _checks.check_search_grid(op, qmin, qmax, symmetric)
    check_histogram(op, counts, range)
    where = Bins.read(op, range, counts.numel())
    occupied = counts.nonzero().flatten().tolist()
    if where is None or not occupied:
        return range.new_full((), torch.nan), range.new_full((), torch.nan)
    weights = counts.cpu().double()
    middles = torch.ldexp(
        torch.arange(counts.numel(), dtype=torch.float32, device="cpu") + (where.first + 0.5),
        torch.tensor(where.exponent, dtype=torch.int64, device="cpu"),
    )
    full = torch.tensor(
        [min(where.edge(occupied[0]), 0.0), max(where.edge(occupied[-1] + 1), 0.0)], dtype=torch.float32, device="cpu"
    )
    best, least = full, math.inf

    def error_of(lo: Tensor, hi: Tensor) -> float:
        nonlocal best, least
        scale, zero_point = choose_qparams(lo, hi, qmin, qmax, symmetric)
        error = middles.double() - fake_quantize(middles, scale, zero_point, None, 0, qmin, qmax).double()
        lanes = in_lanes(weights * (error * error), 8)
        total = float(sequential_sum(sequential_sum(lanes.T)))
        if total < least:
            best, least = torch.stack((lo, hi)), total
        return total

    def search(range_at: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """range_at(part) for hundredths of the full range, then for thousandths around the best of them."""
        errors = [error_of(*range_at(parts[step])) for step in builtins.range(1000, 0, -10)]
        center = 1000 - 10 * errors.index(min(errors))
        for step in builtins.range(min(center + 9, 1000), center - 10, -1):
            error_of(*range_at(parts[step]))

    parts = torch.arange(1001, dtype=torch.int64, device="cpu").float() / 1000.0
    search(lambda part: (full[0] * part, full[1] * part))
    if not symmetric:
        lo = best[0]
        search(lambda part: (lo, full[1] * part))
        hi = best[1]
        search(lambda part: (full[0] * part, hi))
    return best[0].to(range.device), best[1].to(range.device)


def grow_(counts: Tensor, range: Tensor, old: Bins | None, lo: float, hi: float, least: int) -> Bins:
    """Makes room for [lo, hi]; returns where the bins are now."""
    if old is not None:
        low, high = _extent(counts, old)
        lo, hi, least = min(lo, low), max(hi, high), max(least, old.exponent)
    where = Bins.narrowest(lo, hi, least, counts.numel())
    if old is not None:
        counts.copy_(_moved(counts, old, where))
    range.copy_(range.new_tensor([where.edge(0), where.edge(counts.numel())]))
    return where


def _extent(counts: Tensor, where: Bins) -> tuple[float, float]:
    """A value of the first and one of the last bin that is not empty."""
    occupied = counts.nonzero().flatten().tolist()
    if not occupied:
        return math.inf, -math.inf
    return where.edge(occupied[0]), where.edge(occupied[-1] + 0.5)


def _moved(counts: Tensor, old: Bins, new: Bins) -> Tensor:
    index = torch.arange(counts.numel(), device=counts.device, dtype=torch.int64) + old.first
    index = (index >> min(new.exponent - old.exponent, 62)) - new.first
    filled = counts != 0
    return torch.zeros_like(counts).index_add_(0, index[filled], counts[filled])


def in_lanes(values: Tensor, lanes: int) -> Tensor:
    """(..., n) as (..., steps, lanes), zeros at the end."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % lanes))
    return padded.reshape([*padded.shape[:-1], padded.shape[-1] // lanes, lanes])


def sequential_sum(values: Tensor) -> Tensor:
    """The sum along the last dimension, one after the other, from a float64 CPU tensor."""
    return values.cumsum(-1)[..., -1]
