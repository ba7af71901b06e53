# SPDX-License-Identifier: Apache-2.0
"""Ranges from a histogram of an activation: percentiles, and the range with the least mean square error.

It owns the running histogram and its merge; filling it and reading it are native operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant import ops
from pyquant.errors import SpecError
from pyquant.observe.base import Observer
from pyquant.spec import PerTensor, QuantSpec

BINS = 2048


class HistogramObserver(Observer):
    """Counts of the finite values in equal bins; the range of the bins grows with the data. Per tensor only."""

    STATE = ("count", "counts", "edges")

    def __init__(self, spec: QuantSpec, bins: int = BINS) -> None:
        if not isinstance(spec.granularity, PerTensor):
            raise SpecError(f"{self.KIND}: a histogram is kept per tensor, but the format is {spec}; use minmax")
        if bins < 16 or bins % 2:
            raise SpecError(f"{self.KIND}: bins must be even and at least 16, got {bins}")
        self.bins = bins
        super().__init__(spec)

    def reset(self) -> None:
        super().reset()
        self.counts = torch.zeros(self.bins, dtype=torch.int64, device="cpu")
        self.edges = torch.tensor([torch.inf, -torch.inf], dtype=torch.float32, device="cpu")  # lo, hi of the bins

    def _update(self, x: Tensor) -> None:
        ops.observe_histogram_(self.counts, self.edges, self.count, x)

    def _merge(self, other: dict[str, Tensor], batches: int) -> None:
        """Exact: bins of both nest, so the result is the histogram of all the data in any order."""
        ops.merge_histogram_(self.counts, self.edges, other["counts"], other["edges"])


class PercentileObserver(HistogramObserver):
    """The range that leaves `lower` percent of the values below it and `100 - upper` percent above."""

    KIND = "percentile"

    def __init__(self, spec: QuantSpec, lower: float = 0.01, upper: float = 99.99, bins: int = BINS) -> None:
        if not 0.0 <= lower < upper <= 100.0:
            raise SpecError(f"percentile: needs 0 <= lower < upper <= 100, got lower={lower}, upper={upper}")
        self.lower, self.upper = float(lower), float(upper)
        super().__init__(spec, bins)

    def range(self) -> tuple[Tensor, Tensor]:
        return ops.histogram_percentile(self.counts, self.edges, self.lower, self.upper)


class MseObserver(HistogramObserver):
    """The range whose grid has the least mean square error over the histogram."""

    KIND = "mse"

    def range(self) -> tuple[Tensor, Tensor]:
        spec = self.spec
        return ops.histogram_mse_range(self.counts, self.edges, spec.qmin, spec.qmax, spec.symmetric)
