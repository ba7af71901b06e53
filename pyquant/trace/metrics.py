# SPDX-License-Identifier: Apache-2.0
"""Owns how far one tensor is from another: statistics of the difference, PEIR, SQNR, cosine.
Leaves which tensors belong together to `pairing.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.trace.values import as_real

Metric = float | None


@dataclass(frozen=True)
class Difference:
    """The difference a - b, element by element, where both are finite; `a` is the reference.

    mean, min, max, std: of a - b (std over the population). None when there is nothing to compare.
    peir: peak error to interval ratio, max|a - b| / (max(a) - min(a)); 0 when all are equal, infinite when only a is
        constant.
    sqnr: signal to quantization noise ratio, 10 log10(sum a^2 / sum (a - b)^2), in dB; infinite when all are equal.
    cosine: of the angle between a and b as vectors; 1 when both are zero, 0 when one is.
    """

    elements: int
    mean: Metric = None
    min: Metric = None
    max: Metric = None
    std: Metric = None
    peir: Metric = None
    sqnr: Metric = None
    cosine: Metric = None

    @property
    def equal(self) -> bool:
        """Whether no element differs."""
        return not self.min and not self.max

    @property
    def peak(self) -> float:
        """max|a - b|; 0 when there is nothing to compare."""
        return max(abs(self.min or 0.0), abs(self.max or 0.0))


@torch.no_grad()
def difference(a: Tensor, b: Tensor) -> tuple[Difference, int]:
    """How far b is from a, and how many elements are not finite in one of them only, or not finite in different ways.

    a and b have one shape and any dtype; NaN matches NaN, and an infinity one of the same sign.
    """
    assert a.shape == b.shape, f"{a.shape = }, {b.shape = }"
    x, y = as_real(a).double().flatten(), as_real(b).double().flatten()
    finite = torch.isfinite(x) & torch.isfinite(y)
    clashes = 0
    if not bool(finite.all()):
        matches = (x == y) | (x.isnan() & y.isnan())
        clashes = int((~finite & ~matches).sum())
        x, y = x[finite], y[finite]
    if x.numel() == 0:
        return Difference(elements=0), clashes
    d = x - y
    low, high = (float(v) for v in torch.aminmax(d))
    std, mean = (float(v) for v in torch.std_mean(d, correction=0))
    bottom, top = (float(v) for v in torch.aminmax(x))
    found = Difference(
        elements=x.numel(),
        mean=mean,
        min=low,
        max=high,
        std=std,
        peir=_ratio(max(abs(low), abs(high)), top - bottom),
        sqnr=_decibel(x, d),
        cosine=_cosine(x, y),
    )
    return found, clashes


def _ratio(peak: float, interval: float) -> float:
    if peak == 0:
        return 0.0
    return peak / interval if interval > 0 else math.inf


def _split(x: Tensor) -> tuple[float, float]:
    """Euclidean length as a product of two factors, which overflows for no element."""
    peak = float(x.abs().max())
    return peak, float(torch.linalg.vector_norm(x / peak)) if peak > 0 else 0.0


def _decibel(signal: Tensor, noise: Tensor) -> float:
    (loud, many), (quiet, few) = _split(signal), _split(noise)
    if quiet == 0:
        return math.inf
    if loud == 0:
        return -math.inf
    return 20 * (math.log10(loud) - math.log10(quiet) + math.log10(many / few))


def _cosine(x: Tensor, y: Tensor) -> float:
    (peak_x, rest_x), (peak_y, rest_y) = _split(x), _split(y)
    if peak_x == 0 or peak_y == 0:
        return 1.0 if peak_x == peak_y else 0.0
    return max(-1.0, min(1.0, float(torch.dot(x / peak_x, y / peak_y)) / (rest_x * rest_y)))
