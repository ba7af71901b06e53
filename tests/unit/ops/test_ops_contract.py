# SPDX-License-Identifier: Apache-2.0
"""What the operators promise in words: rounding against exact arithmetic, NaN, infinities, state, threads."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from ops_cases import (
    DTYPES,
    GRANULARITIES,
    INF,
    SHAPE,
    Granularity,
    assert_same_bits,
    by_name,
    calls,
    filled_histogram,
    histogram_state,
    observer_state,
    ordinary,
    other_calls,
    scales_for,
    ties,
)

from pyquant import ops

ZERO = torch.tensor(0, dtype=torch.int32)


@pytest.mark.usefixtures("isa")
def test_halves_round_away_from_zero() -> None:
    x = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 126.5, -127.5])
    q = ops.quantize(x, torch.tensor(1.0), ZERO, None, 0, -128, 127, torch.int8)
    assert q.tolist() == [1, -1, 2, 3, -3, 0, 0, 127, -128]


@pytest.mark.usefixtures("isa")
def test_integers_are_those_of_exact_arithmetic() -> None:
    scale, zero_point = torch.tensor(0.037), torch.tensor(-11, dtype=torch.int32)
    x = torch.cat((ordinary((400,)), ties((400,), torch.float32, 0.037)))
    q = ops.quantize(x, scale, zero_point, None, 0, -128, 127, torch.int8)
    for value, integer in zip(x.tolist(), q.tolist(), strict=True):
        # The quotient is rounded to float32 before it is rounded to an integer; both steps exactly, by fractions.
        quotient = Fraction(torch.tensor(value).div(scale).item())
        away = math.floor(abs(quotient) + Fraction(1, 2))
        expected = min(max(int(math.copysign(away, quotient)) - 11, -128), 127)
        assert integer == expected, value


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", by_name(DTYPES))
def test_nan_becomes_qmin_and_infinities_saturate(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, -INF, INF], dtype=dtype)
    scale, zero_point = torch.tensor(0.5), torch.tensor(3, dtype=torch.int32)
    assert ops.quantize(x, scale, zero_point, None, 0, -8, 7, torch.int8).tolist() == [-8, -8, 7]
    assert ops.fake_quantize(x, scale, zero_point, None, 0, -8, 7).tolist() == [-5.5, -5.5, 2.0]


@pytest.mark.usefixtures("isa")
def test_no_result_is_negative_zero() -> None:
    x = torch.tensor([-0.0, -1e-45, -0.2, 0.0, 0.2] * 20)
    y = ops.fake_quantize(x, torch.tensor(1.0), torch.tensor(5, dtype=torch.int32), None, 0, 0, 255)
    assert not y.signbit().any()
    assert not y.any()


@pytest.mark.parametrize("dtype", by_name(DTYPES[1:]))
def test_16_bit_floats_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = ordinary((1000,), dtype)
    args = (torch.tensor(0.013), ZERO, None, 0, -128, 127)
    assert_same_bits(ops.fake_quantize(x, *args), ops.fake_quantize(x.float(), *args).to(dtype))


def test_the_result_is_contiguous_and_new() -> None:
    x = ordinary((4, 6)).t()
    before = x.clone()
    y = ops.fake_quantize(x, torch.tensor(0.1), ZERO, None, 0, -8, 7)
    assert y.is_contiguous()
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


@pytest.mark.usefixtures("isa")
def test_minmax_counts_what_it_skips() -> None:
    lo, hi, count = observer_state()
    ops.observe_minmax_(lo, hi, count, torch.tensor([1.0, torch.nan, -3.0, INF, -INF]))
    assert (lo.item(), hi.item(), count.tolist()) == (-3.0, 1.0, [5, 3])
    ops.observe_minmax_(lo, hi, count, torch.tensor([2.0]))
    assert (lo.item(), hi.item(), count.tolist()) == (-3.0, 2.0, [6, 3])


def test_minmax_of_nothing_is_empty() -> None:
    lo, hi = ops.minmax(torch.tensor([[torch.nan, INF], [1.0, 2.0]]), 0)
    assert (lo.tolist(), hi.tolist()) == ([INF, 1.0], [-INF, 2.0])


def test_minmax_per_channel_updates_only_its_channels() -> None:
    lo, hi, count = observer_state((3,))
    ops.observe_minmax_(lo, hi, count, torch.tensor([[1.0, torch.nan, -2.0], [5.0, torch.nan, 0.0]]), 1)
    assert (lo.tolist(), hi.tolist(), count.tolist()) == ([1.0, INF, -2.0], [5.0, -INF, 0.0], [6, 2])


def test_ema_starts_with_the_first_batch_that_has_data() -> None:
    lo, hi, count = observer_state()
    ops.observe_ema_(lo, hi, count, torch.tensor([torch.nan]), None, 0.75)
    assert (lo.item(), hi.item()) == (INF, -INF)
    ops.observe_ema_(lo, hi, count, torch.tensor([-4.0, 8.0]), None, 0.75)
    assert (lo.item(), hi.item()) == (-4.0, 8.0)
    ops.observe_ema_(lo, hi, count, torch.tensor([0.0, 4.0]), None, 0.75)
    assert (lo.item(), hi.item(), count.tolist()) == (-3.0, 7.0, [5, 1])
    ops.observe_ema_(lo, hi, count, torch.tensor([torch.nan]), None, 0.75)
    assert (lo.item(), hi.item()) == (-3.0, 7.0)


def test_zero_range_has_scale_one_and_no_range_has_scale_nan() -> None:
    lo, hi = torch.tensor([0.0, INF, -1.0, torch.nan]), torch.tensor([0.0, -INF, INF, 1.0])
    scale, zero_point = ops.choose_qparams(lo, hi, 0, 255, False)
    assert scale[0] == 1
    assert scale[1:].isnan().all()
    assert zero_point.tolist() == [0, 0, 0, 0]


def test_histogram_percentiles_are_near_those_of_the_data() -> None:
    counts, range_, count = histogram_state(2048)
    x = ordinary((20_000,))
    for batch in x.split(3000):
        ops.observe_histogram_(counts, range_, count, batch)
    assert counts.sum() == x.numel()
    assert count.tolist() == [20_000, 0]
    lo, hi = ops.histogram_percentile(counts, range_, 1.0, 99.0)
    width = (range_[1] - range_[0]) / 2048
    assert abs(lo - x.quantile(0.01)) <= width
    assert abs(hi - x.quantile(0.99)) <= width


def test_histogram_keeps_half_of_its_bins_within_the_data() -> None:
    for extent in (0.3, 1.0, 1.001, 77.0):
        counts, range_, count = histogram_state(2048)
        ops.observe_histogram_(counts, range_, count, torch.tensor([0.0, extent]))
        assert counts.nonzero().max() >= 1023


def test_nothing_counted_has_no_range() -> None:
    counts, range_, count = histogram_state()
    ops.observe_histogram_(counts, range_, count, torch.tensor([torch.nan]))
    assert count.tolist() == [1, 1]
    assert torch.stack(ops.histogram_percentile(counts, range_, 0.0, 100.0)).isnan().all()
    assert torch.stack(ops.histogram_mse_range(counts, range_, 0, 255, False)).isnan().all()


def test_mse_ranges_leave_out_a_lone_outlier() -> None:
    x = torch.cat((ordinary((5000,)), torch.tensor([60.0])))
    counts, range_, count = histogram_state(2048)
    ops.observe_histogram_(counts, range_, count, x)
    lo, hi = ops.histogram_mse_range(counts, range_, 0, 15, False)
    assert -5 < lo < 0
    assert 3 < hi < 40
    lo, hi = ops.mse_range(x, None, 0, -7, 7, True)
    assert hi < 60


@pytest.mark.parametrize("g", by_name(GRANULARITIES))
def test_mse_range_loses_no_more_than_the_full_range(g: Granularity) -> None:
    x = ordinary(SHAPE) ** 3

    def error(lo: torch.Tensor, hi: torch.Tensor) -> float:
        scale, zero_point = ops.choose_qparams(lo, hi, -7, 7, True)
        return float((x - ops.fake_quantize(x, scale, zero_point, g.axis, g.group, -7, 7)).double().square().sum())

    full = ops.minmax(x, g.axis, g.group)
    found = ops.mse_range(x, g.axis, g.group, -7, 7, True)
    assert error(*found) <= error(*full) * (1 + 1e-6)
    assert all((f.abs() <= whole.abs()).all() for f, whole in zip(found, full, strict=True))


def test_weighted_mse_range_of_equal_importances_is_mse_range() -> None:
    x = ordinary((30, 64)) ** 3
    for axis, group in ((0, 0), (1, 16)):
        expected = ops.mse_range(x, axis, group, -7, 7, True)
        for importance in (1.0, 2.0**100, 2.0**-140):
            found = ops.weighted_mse_range(x, torch.full((64,), importance), axis, group, -7, 7, True)
            assert_same_bits(found, expected)


def test_weighted_mse_range_loses_least_where_it_matters() -> None:
    x, importance = ordinary((40, 64)), ordinary((64,), seed=1).mul(2).exp()

    def error(range_: tuple[torch.Tensor, torch.Tensor]) -> float:
        scale, zero_point = ops.choose_qparams(*range_, -7, 7, True)
        e = x - ops.fake_quantize(x, scale, zero_point, 0, 0, -7, 7)
        return float((importance * e.square()).double().sum())

    weighted = error(ops.weighted_mse_range(x, importance, 0, 0, -7, 7, True))
    assert weighted < 0.95 * error(ops.mse_range(x, 0, 0, -7, 7, True))
    assert weighted < 0.95 * error(ops.minmax(x, 0))
    by_hand = min(
        error((-most, most))
        for most in [ops.minmax(x, 0)[1].maximum(-ops.minmax(x, 0)[0]) * (100 - c) / 100 for c in range(80)]
    )
    assert weighted <= by_hand


def test_weighted_mse_range_leaves_out_values_of_no_importance() -> None:
    x = torch.tensor([[1.0, -2, 3, 7, 100]])
    importance = torch.tensor([1.0, 1, 1, 1, 0])
    _, hi = ops.weighted_mse_range(x, importance, 0, 0, -7, 7, True)
    assert hi < 25
    assert ops.weighted_mse_range(x, importance * 0, 0, 0, -7, 7, True)[1] == 100
    x[0, 0] = torch.nan
    assert ops.weighted_mse_range(x, importance, 0, 0, -7, 7, True)[1] == 100


def test_threads_do_not_change_a_bit() -> None:
    x = ordinary((600, 500)) * 3
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        state, state_c, histogram = observer_state(), observer_state((500,)), histogram_state(2048)
        ops.observe_minmax_(*state, x)
        ops.observe_minmax_(*state_c, x, 1)
        ops.observe_histogram_(*histogram, x)
        row = [*state, *state_c, *histogram, *ops.minmax(x, 0), *ops.minmax(x, 1, 50), *ops.minmax(x, 0, 60)]
        row += [*ops.mse_range(x, None, 0, -7, 7, True), *ops.mse_range(x[:, :20], 0, 0, -7, 7, True)]
        importance = x[0].abs()
        for axis, group in ((None, 0), (0, 0), (1, 100)):
            row += ops.weighted_mse_range(x[:40], importance, axis, group, -7, 7, True)
        for g in GRANULARITIES[:2]:
            scale, zero_point = scales_for(x, g, (-128, 127))
            args = (x, scale, zero_point, g.axis, g.group, -128, 127)
            row += [ops.fake_quantize(*args), ops.quantize(*args, torch.int8)]
        row += [ops.tensor_stats(x), ops.tensor_stats(x.half().t())]
        row.append(ops.pack_int4(ops.quantize(x, torch.tensor(0.5), ZERO, None, 0, -8, 7, torch.int8)))
        results.append(row)
    assert_same_bits(results[0], results[1])


def test_every_operator_is_covered_by_the_cases() -> None:
    from pyquant.ops.backends import OPERATORS

    names = {c.name for g in GRANULARITIES for c in calls(torch.float32, g)} | {c.name for c in other_calls()}
    assert names == set(OPERATORS)


def test_filled_histogram_is_where_its_range_says() -> None:
    counts, range_ = filled_histogram()
    assert counts.sum() == 500
    assert range_[0] < 0 < range_[1]
