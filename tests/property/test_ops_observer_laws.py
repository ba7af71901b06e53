# SPDX-License-Identifier: Apache-2.0
"""Laws of the running statistics: batches, order and shards do not matter; percentiles are sorted; merging is exact."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyquant import ops

BATCHES = st.lists(
    st.lists(st.floats(width=32), max_size=30).map(lambda v: torch.tensor(v, dtype=torch.float32)),
    min_size=1,
    max_size=6,
)
BINS = st.sampled_from([2, 3, 16, 64, 1000])
laws = settings(max_examples=80, deadline=None)
State = tuple[Tensor, Tensor, Tensor]


def histogram(batches: list[Tensor], bins: int) -> State:
    state = (
        torch.zeros(bins, dtype=torch.int64),
        torch.tensor([torch.inf, -torch.inf]),
        torch.zeros(2, dtype=torch.int64),
    )
    for x in batches:
        ops.observe_histogram_(*state, x)
    return state


def same(a: State, b: State) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@laws
@given(BATCHES)
def test_minmax_of_batches_is_that_of_all(batches: list[Tensor]) -> None:
    lo, hi, count = torch.tensor(torch.inf), torch.tensor(-torch.inf), torch.zeros(2, dtype=torch.int64)
    for x in batches:
        ops.observe_minmax_(lo, hi, count, x)
    everything = torch.cat(batches)
    assert (lo, hi) == tuple(ops.minmax(everything))
    assert count.tolist() == [everything.numel(), int((~everything.isfinite()).sum())]


@laws
@given(BATCHES, BINS)
def test_histograms_depend_on_the_data_alone(batches: list[Tensor], bins: int) -> None:
    at_once = histogram([torch.cat(batches)], bins)
    assert same(histogram(batches, bins), at_once)
    assert same(histogram(batches[::-1], bins), at_once)
    counts, range_, count = at_once
    assert counts.sum() == count[0] - count[1]
    if counts.any():
        assert range_[0] <= 0 < range_[1]


@laws
@given(BATCHES, BATCHES, BINS)
def test_merged_histograms_are_those_of_all_data(first: list[Tensor], second: list[Tensor], bins: int) -> None:
    counts, range_, count = histogram(first, bins)
    other_counts, other_range, other_count = histogram(second, bins)
    ops.merge_histogram_(counts, range_, other_counts, other_range)
    assert same((counts, range_, count + other_count), histogram(first + second, bins))


@laws
@given(BATCHES, BINS, st.lists(st.floats(0, 100), min_size=3, max_size=3, unique=True))
def test_percentiles_are_sorted(batches: list[Tensor], bins: int, percents: list[float]) -> None:
    counts, range_, _ = histogram(batches, bins)
    if not counts.any():
        return
    a, b, c = sorted(percents)
    low, middle = ops.histogram_percentile(counts, range_, a, b)
    same_low, high = ops.histogram_percentile(counts, range_, a, c)
    assert low == same_low
    assert range_[0] <= low <= middle <= high <= range_[1]


@laws
@given(BATCHES)
def test_a_searched_range_lies_within_the_data(batches: list[Tensor]) -> None:
    x = torch.cat(batches).clamp(-1e6, 1e6)
    counts, range_, _ = histogram([x], 256)
    if not counts.any():
        return
    lo, hi = ops.histogram_mse_range(counts, range_, 0, 255, False)
    assert range_[0] <= lo <= 0 <= hi <= range_[1]
    lo, hi = ops.mse_range(x, None, 0, 0, 255, False)
    full_lo, full_hi = ops.minmax(x)
    assert lo.abs() <= full_lo.abs()
    assert hi.abs() <= full_hi.abs()
