# SPDX-License-Identifier: Apache-2.0
"""The range that needs no data: given by the user, or by the mathematics of the operator (softmax, sigmoid, tanh, cos).

It owns given ranges and grids. Which roles have one is role.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyquant.errors import SpecError
from pyquant.observe.base import Observer
from pyquant.qparams import QParams
from pyquant.spec import PerTensor, QuantSpec


class FixedObserver(Observer):
    """[lo, hi] for any data; `grid` is (scale, zero_point) where the runtimes prescribe them."""

    KIND = "fixed"

    def __init__(self, spec: QuantSpec, lo: float, hi: float, grid: tuple[float, int] | None = None) -> None:
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise SpecError(f"fixed: the range must be finite with lo < hi, got [{lo}, {hi}]")
        if not isinstance(spec.granularity, PerTensor):
            raise SpecError(f"fixed: a known range is per tensor, but the format is {spec}")
        self.lo, self.hi, self.grid = float(lo), float(hi), grid
        super().__init__(spec)

    def _update(self, x: Tensor) -> None:
        """No statistics: values outside the range saturate."""

    def range(self) -> tuple[Tensor, Tensor]:
        device = self.count.device
        return torch.tensor(self.lo, device=device, dtype=torch.float32), torch.tensor(
            self.hi, device=device, dtype=torch.float32
        )

    def qparams(self) -> QParams:
        if self.grid is None:
            return super().qparams()
        scale, zero_point = self.grid
        device = self.count.device
        return QParams(
            self.spec,
            torch.tensor(scale, dtype=torch.float32, device=device),
            torch.tensor(zero_point, dtype=torch.int32, device=device),
        )

    def _merge(self, other: dict[str, Tensor], batches: int) -> None:
        """Nothing to merge: both have the same range."""

    @property
    def needs_data(self) -> bool:
        return False
