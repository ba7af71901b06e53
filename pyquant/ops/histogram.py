# SPDX-License-Identifier: Apache-2.0
"""A histogram that grows with the data, and the ranges computed from it.

It owns the typed functions and their Meta kernels; choosing which range to use is observe/.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_observe: Callable[..., None] = native("observe_histogram_")
_merge: Callable[..., None] = native("merge_histogram_")
_percentile: Callable[..., tuple[Tensor, Tensor]] = native("histogram_percentile")
_mse_range: Callable[..., tuple[Tensor, Tensor]] = native("histogram_mse_range")

MAX_BINS = 1 << 20


def observe_histogram_(counts: Tensor, range: Tensor, count: Tensor, x: Tensor) -> None:
    """Counts the finite values of x in equal bins, after widening the bins to hold them and 0.

    counts: int64 (bins,), all 0 at first. range: float32 (2,), first and last edge of the bins, [inf, -inf] at first.
    count: int64 (2,), elements seen and non-finite elements seen. The width of a bin is a power of two and edges are
    multiples of it, so bins merge exactly: counts and range depend only on the data, not on its order or batches.
    At least half of the bins lie between min(0, smallest) and max(0, largest). Values beyond 2^120 count as 2^120.
    """
    try:
        _observe(counts, range, count, observed(x))
    except RuntimeError as error:
        raise op_error(error) from None


def merge_histogram_(counts: Tensor, range: Tensor, other_counts: Tensor, other_range: Tensor) -> None:
    """Adds another histogram of as many bins. The result is exactly that of observing the other's data too."""
    try:
        _merge(counts, range, other_counts, other_range)
    except RuntimeError as error:
        raise op_error(error) from None


def histogram_percentile(counts: Tensor, range: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    """(lo, hi), float32 (): `lower` percent of the values lie below lo, `upper` percent below hi; linear within a bin.

    NaN when nothing was counted. Raises OpArgumentError unless 0 <= lower < upper <= 100.
    """
    try:
        return _percentile(counts, range, lower, upper)
    except RuntimeError as error:
        raise op_error(error) from None


def histogram_mse_range(counts: Tensor, range: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(lo, hi), float32 (): the range whose grid has the least square error over the middles of the bins.

    The candidates are hundredths of the occupied range and then thousandths around the best: both ends together, then
    (asymmetric) hi alone, then lo alone. NaN when nothing was counted.
    """
    try:
        return _mse_range(counts, range, qmin, qmax, symmetric)
    except RuntimeError as error:
        raise op_error(error) from None


def check_histogram(op: str, counts: Tensor, range: Tensor) -> None:
    if not 2 <= counts.numel() <= MAX_BINS:
        raise OpArgumentError(f"{op}: counts has {counts.numel()} bins; expected 2 to {MAX_BINS}")
    _checks.check_state(op, "counts", counts, torch.int64, counts.numel())
    _checks.check_state(op, "range", range, torch.float32, 2)


def check_same_bins(op: str, counts: Tensor, other_counts: Tensor) -> None:
    if counts.numel() != other_counts.numel():
        raise OpArgumentError(
            f"{op}: counts has {counts.numel()} bins, other_counts has {other_counts.numel()}; expected the same number"
        )


def check_percentiles(op: str, lower: float, upper: float) -> None:
    if not 0 <= lower < upper <= 100:
        raise OpArgumentError(f"{op}: percentiles are {lower:g} and {upper:g}; expected 0 <= lower < upper <= 100")


@meta("observe_histogram_")
def _observe_meta(counts: Tensor, range: Tensor, count: Tensor, x: Tensor) -> None:
    _checks.check_dtype("observe_histogram_", "x", x, *_checks.FLOATS)
    check_histogram("observe_histogram_", counts, range)
    _checks.check_state("observe_histogram_", "count", count, torch.int64, 2)


@meta("merge_histogram_")
def _merge_meta(counts: Tensor, range: Tensor, other_counts: Tensor, other_range: Tensor) -> None:
    check_histogram("merge_histogram_", counts, range)
    check_histogram("merge_histogram_", other_counts, other_range)
    check_same_bins("merge_histogram_", counts, other_counts)


@meta("histogram_percentile")
def _percentile_meta(counts: Tensor, range: Tensor, lower: float, upper: float) -> tuple[Tensor, Tensor]:
    check_percentiles("histogram_percentile", lower, upper)
    check_histogram("histogram_percentile", counts, range)
    return range.new_empty(()), range.new_empty(())


@meta("histogram_mse_range")
def _mse_range_meta(counts: Tensor, range: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    _checks.check_search_grid("histogram_mse_range", qmin, qmax, symmetric)
    check_histogram("histogram_mse_range", counts, range)
    return range.new_empty(()), range.new_empty(())
