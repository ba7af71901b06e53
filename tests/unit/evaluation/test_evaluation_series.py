# SPDX-License-Identifier: Apache-2.0
"""Means, standard errors and paired intervals against scipy, numpy and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from pyquant.errors import EvaluationError
from pyquant.evaluation import Series, paired_difference

DRAW = np.random.default_rng(5)


def series(values: np.ndarray, weights: np.ndarray | None = None) -> Series:
    return Series(tuple(map(float, values)), tuple(map(float, np.ones(len(values)) if weights is None else weights)))


def test_the_standard_error_of_equal_units_is_scipys() -> None:
    values = DRAW.normal(size=17)
    found = series(values * 255, np.full(17, 255))
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(scipy.stats.sem(values), rel=1e-12)


def test_the_standard_error_of_unequal_units_is_the_spread_of_the_ratio() -> None:
    """Of 200 units drawn 4000 times: the deviation of the ratio itself."""
    sizes = DRAW.integers(50, 400, (4000, 200))
    sums = sizes * 3.0 + DRAW.normal(size=sizes.shape) * np.sqrt(sizes) * 2
    spread = (sums.sum(axis=1) / sizes.sum(axis=1)).std()
    estimates = [series(sums[row], sizes[row]).standard_error for row in range(100)]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.05)


def test_the_interval_is_scipys_percentile_interval() -> None:
    a, b = DRAW.normal(0.3, 1, 40), DRAW.normal(0, 1, 40)
    found = paired_difference(series(a), series(b), seed=3)
    theirs = scipy.stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(8)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx((a - b).mean(), rel=1e-12)
    assert found.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_interval_of_three_units_is_that_of_all_27_draws() -> None:
    a, b, weights = np.array([4.0, 9.0, 1.0]), np.array([3.0, 5.0, 3.0]), np.array([2.0, 3.0, 1.0])
    draws = [list(each) for each in itertools.product(range(3), repeat=3)]
    means = np.array([(a - b)[each].sum() / weights[each].sum() for each in draws])
    found = paired_difference(series(a, weights), series(b, weights), confidence=0.5, resamples=20_000)
    low, high = np.quantile(means, [0.25, 0.75])
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.weight == 6


def test_pairing_takes_what_both_share_away() -> None:
    """Windows differ by far more than two models do; the paired interval sees the small difference."""
    hard = DRAW.normal(3, 1, 60)
    a, b = hard + 0.02 + DRAW.normal(0, 0.01, 60), hard
    found = paired_difference(series(a), series(b))
    assert 0.01 < found.low < 0.02 < found.high < 0.03
    assert found.standard_error < 0.02 * series(a).standard_error


def test_the_same_seed_gives_the_same_interval_and_shorter_series_are_paired_by_their_units() -> None:
    a, b = DRAW.normal(size=30), DRAW.normal(size=12)
    assert paired_difference(series(a), series(b), seed=4) == paired_difference(series(a[:12]), series(b), seed=4)
    assert paired_difference(series(a), series(b), seed=4).low != paired_difference(series(a), series(b), seed=5).low


def test_one_unit_has_no_interval() -> None:
    found = paired_difference(Series((5.0,), (2.0,)), Series((3.0,), (2.0,)))
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Series((), ()), "at least one"),
        (lambda: Series((1.0,), (1.0, 2.0)), "as many values as weights"),
        (lambda: Series((1.0,), (0.0,)), "above 0, got 0.0"),
        (lambda: paired_difference(Series.of([1]), Series((1.0,), (2.0,))), "other weights"),
        (lambda: paired_difference(Series.of([1]), Series.of([1]), confidence=1), "confidence = 1"),
    ],
)
def test_what_is_no_series_or_pair(make, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        make()
