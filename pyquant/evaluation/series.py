# SPDX-License-Identifier: Apache-2.0
"""Numbers of each window or question, their mean with its standard error, and the paired difference of two models.

It owns these statistics. What the numbers are is scores.py and answers.py; nothing here knows models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyquant.errors import EvaluationError

_CHUNK = 1 << 20  # indices of a bootstrap in memory at once


@dataclass(frozen=True)
class Series:
    """What each unit (a window of text, a question) gave: `values` are sums, such as nats, over `weights`, such as
    tokens. Raises EvaluationError without a unit, for unequal lengths and for a weight that is not positive."""

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.weights):
            raise EvaluationError(
                f"a series has as many values as weights and at least one, got {len(self.values)} and "
                f"{len(self.weights)}"
            )
        if bad := [weight for weight in self.weights if not weight > 0]:
            raise EvaluationError(f"the weight of a unit is above 0, got {bad[0]}")

    @classmethod
    def of(cls, values: Sequence[float]) -> Series:
        """Each unit counts once."""
        return cls(tuple(float(value) for value in values), (1.0,) * len(values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Sum of the values over sum of the weights: nats per token, share of questions."""
        return math.fsum(self.values) / math.fsum(self.weights)

    @property
    def standard_error(self) -> float:
        """Of `mean`, with units drawn independently: the ratio estimator's (Cochran, Sampling Techniques, 1977, eq.
        6.13 without the finite-population factor). With equal weights it is the deviation of the units' means over
        sqrt(n). NaN for one unit."""
        count = len(self)
        if count < 2:
            return math.nan
        rest = np.array(self.values) - self.mean * np.array(self.weights)
        return float(np.sqrt((rest**2).sum() / (count * (count - 1))) / np.mean(self.weights))

    def first(self, count: int) -> Series:
        """The first `count` units."""
        return Series(self.values[:count], self.weights[:count])


@dataclass(frozen=True)
class Difference:
    """The mean of one series minus that of another on the same units; `low` and `high` are the ends of the bootstrap
    interval, NaN for one unit. weight: what both were counted over (tokens, questions)."""

    value: float
    low: float
    high: float
    standard_error: float
    units: int
    weight: float


def paired_difference(
    a: Series, b: Series, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """`a` minus `b`, unit by unit, over the units that both have (the first ones).

    The interval is the percentile interval (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, 13.3) of
    `resamples` draws of whole units with replacement, the same for the same `seed`. Raises EvaluationError where the
    units are not the same (unequal weights), or for a confidence outside 0 to 1.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise EvaluationError(
            f"a bootstrap has at least 1 resample and a confidence between 0 and 1: {resamples = }, {confidence = }"
        )
    count = min(len(a), len(b))
    a, b = a.first(count), b.first(count)
    if a.weights != b.weights:
        raise EvaluationError("two series are paired over the same units, and these have other weights")
    rest = Series(tuple(x - y for x, y in zip(a.values, b.values, strict=True)), a.weights)
    low, high = (math.nan, math.nan) if count < 2 else _interval(rest, resamples, confidence, seed)
    return Difference(rest.mean, low, high, rest.standard_error, count, math.fsum(a.weights))


def _interval(series: Series, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    values, weights = np.array(series.values), np.array(series.weights)
    draw, count = np.random.default_rng(seed), len(series)
    means: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        chosen = draw.integers(0, count, (min(step, resamples - start), count))
        means.append(values[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
