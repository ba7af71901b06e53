# SPDX-License-Identifier: Apache-2.0
"""The min/max range: smallest and largest finite value, per tensor, channel or group; the MSE search for constants.

It owns running min and max. Ranges that leave outliers out of an activation are histogram.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant import ops
from pyquant.observe.base import Observer, channels_of


class MinMaxObserver(Observer):
    """lo = min, hi = max of all finite values seen."""

    KIND = "minmax"
    STATE = ("count", "lo", "hi")

    def reset(self) -> None:
        super().reset()
        self._shape: Sequence[int] = ()
        self.lo = torch.tensor(torch.inf, dtype=torch.float32, device="cpu")
        self.hi = torch.tensor(-torch.inf, dtype=torch.float32, device="cpu")

    def _update(self, x: Tensor) -> None:
        view, axis, shape = channels_of(x, self.spec)
        self._grow(view, axis, shape)
        self._observe(view, axis)

    def _grow(self, view: Tensor, axis: int | None, shape: Sequence[int]) -> None:
        if self.batches == 0 and axis is not None:
            self._shape = shape
            self.lo = self.lo.expand(view.shape[axis]).clone()
            self.hi = self.hi.expand(view.shape[axis]).clone()

    def _observe(self, view: Tensor, axis: int | None) -> None:
        ops.observe_minmax_(self.lo, self.hi, self.count, view, axis)

    def range(self) -> tuple[Tensor, Tensor]:
        return self.lo.reshape(tuple(self._shape)), self.hi.reshape(tuple(self._shape))

    def merge(self, other: Observer) -> None:
        fresh = self.batches == 0
        super().merge(other)
        if fresh and isinstance(other, MinMaxObserver):
            self._shape = other._shape

    def _merge(self, other: dict[str, Tensor], batches: int) -> None:
        self.lo = torch.minimum(self.lo, other["lo"])
        self.hi = torch.maximum(self.hi, other["hi"])


class MseConstantObserver(MinMaxObserver):
    """For a constant, observed once and completely: the range whose grid has the least mean square error, searched per
    scale."""

    KIND = "mse"

    def _observe(self, view: Tensor, axis: int | None) -> None:
        super()._observe(view, axis)
        if view.numel():
            spec = self.spec
            lo, hi = ops.mse_range(view, axis, 0, spec.qmin, spec.qmax, spec.symmetric)
            self.lo, self.hi = lo.reshape(self.lo.shape), hi.reshape(self.hi.shape)
