# SPDX-License-Identifier: Apache-2.0
"""The difference of two recorded tensors, over the elements that are finite in both.

It owns the statistics of the difference. Formulas are pyquant.metrics, which tensors belong together is pairing.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.metrics import Deviation
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
    deviation = Deviation.of(x, y)
    found = Difference(
        elements=x.numel(),
        mean=mean,
        min=low,
        max=high,
        std=std,
        peir=deviation.peir,
        sqnr=deviation.sqnr,
        cosine=deviation.cosine,
    )
    return found, clashes
