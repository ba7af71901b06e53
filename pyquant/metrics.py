# SPDX-License-Identifier: Apache-2.0
"""How far one tensor is from another: SQNR, PEIR, cosine, mean and largest difference, computed in float64.

It owns the formulas and their edge cases, for one pair of tensors and accumulated over batches. Which elements are
compared, and which value is good enough, is the caller's choice.

Edge cases, the same for every metric:

    both equal (also both zero)     SQNR +inf, PEIR 0, cosine 1, differences 0
    reference zero, other not       SQNR -inf, PEIR inf, cosine 0
    reference constant, other not   PEIR inf
    no elements                     as equal tensors
    the same infinity in both       no difference; the element is in neither signal nor interval
    NaN in either, or an infinity   an infinite difference: SQNR -inf, PEIR inf, mean and largest difference inf,
    in one of them only             cosine 0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyquant.errors import InputError

Array = np.ndarray[Any, np.dtype[np.float64]]
#: What the metrics take: a tensor of any real dtype, an array, or numbers.
Values = Tensor | np.ndarray[Any, Any] | Sequence[Any] | float


def sqnr_db(reference: Values, other: Values) -> float:
    """Signal to quantization noise ratio in decibels: 10 log10(sum reference^2 / sum (reference - other)^2)."""
    return Deviation.of(reference, other).sqnr


def peir(reference: Values, other: Values) -> float:
    """Peak error to interval ratio: max |reference - other| / (max reference - min reference)."""
    return Deviation.of(reference, other).peir


def cosine(reference: Values, other: Values) -> float:
    """Cosine of the angle between the flattened tensors."""
    return Deviation.of(reference, other).cosine


def mean_abs_diff(reference: Values, other: Values) -> float:
    """Mean of |reference - other|."""
    return Deviation.of(reference, other).mean_abs


def max_abs_diff(reference: Values, other: Values) -> float:
    """Largest |reference - other|."""
    return Deviation.of(reference, other).max_abs


def lsb_error(reference: Values, other: Values, scale: Values) -> Array:
    """|reference - other| in steps of the grid, elementwise. `scale` broadcasts against the tensors.

    Raises InputError for tensors of different shapes.
    """
    x, y = _pair(reference, other)
    return (_difference(x, y).abs() / _double(scale).to(x.device)).cpu().numpy()


@dataclass
class _Squares:
    """sum x^2 = total * unit^2. The unit is 1, or a power of two near the largest element where squares of such
    elements would overflow or vanish."""

    total: float = 0.0
    unit: float = 0.0

    def add(self, x: Tensor) -> None:
        self.grow(_unit(float(x.abs().max())))
        self.total += float(self.scaled(x).square().sum())

    def grow(self, unit: float) -> None:
        if unit > self.unit:
            self.total *= (self.unit / unit) ** 2
            self.unit = unit

    def scaled(self, x: Tensor) -> Tensor:
        return x if self.unit in (0.0, 1.0) else x / self.unit


def _unit(peak: float) -> float:
    if peak == 0 or 1e-100 < peak < 1e100:
        return float(peak > 0)
    return math.ldexp(1.0, math.frexp(peak)[1] - 1)


@dataclass
class Deviation:
    """The metrics of any number of pairs of tensors (batches), as if all of them were one pair.

    elements: how many were compared. low, high: least and largest finite value of the reference (inf, -inf before the
    first). max_abs: largest |reference - other|.
    """

    elements: int = 0
    low: float = math.inf
    high: float = -math.inf
    max_abs: float = 0.0
    _abs: float = 0.0
    _dot: float = 0.0
    _signal: _Squares = field(default_factory=_Squares)
    _other: _Squares = field(default_factory=_Squares)
    _noise: _Squares = field(default_factory=_Squares)

    @classmethod
    def of(cls, reference: Values, other: Values) -> Deviation:
        """The deviation of one pair. Raises InputError for tensors of different shapes."""
        deviation = cls()
        deviation.add(reference, other)
        return deviation

    @torch.no_grad()
    def add(self, reference: Values, other: Values) -> None:
        """Add one pair of any shape. Raises InputError for tensors of different shapes."""
        x, y = (value.flatten() for value in _pair(reference, other))
        self.elements += x.numel()
        if x.numel() == 0:
            return
        error = _difference(x, y)
        finite = torch.isfinite(error) & torch.isfinite(x)
        self._add_error(error)
        if not bool(finite.all()):
            x, y = x[finite], y[finite]
        if x.numel() == 0:
            return
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        before = self._signal.unit, self._other.unit
        self._signal.add(x)
        self._other.add(y)
        for old, squares in zip(before, (self._signal, self._other), strict=True):
            self._dot *= old / squares.unit if squares.unit else 1.0
        self._dot += float(torch.dot(self._signal.scaled(x), self._other.scaled(y)))

    def _add_error(self, error: Tensor) -> None:
        size = error.abs()
        self.max_abs = max(self.max_abs, float(size.max()))
        self._abs += float(size.sum())
        if math.isfinite(self.max_abs):
            self._noise.add(error)

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB."""
        if self.max_abs == 0:
            return math.inf
        if not math.isfinite(self.max_abs) or self._signal.total == 0:
            return -math.inf
        units = 20 * (math.log10(self._signal.unit) - math.log10(self._noise.unit))
        return 10 * (math.log10(self._signal.total) - math.log10(self._noise.total)) + units

    @property
    def peir(self) -> float:
        """Peak error to interval ratio."""
        if self.max_abs == 0:
            return 0.0
        interval = self.high - self.low
        return self.max_abs / interval if math.isfinite(self.max_abs) and interval > 0 else math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two, in [-1, 1]."""
        if not math.isfinite(self.max_abs):
            return 0.0
        if self._signal.total == 0 or self._other.total == 0:
            return float(self._signal.total == self._other.total)
        return max(-1.0, min(1.0, self._dot / math.sqrt(self._signal.total) / math.sqrt(self._other.total)))

    @property
    def mean_abs(self) -> float:
        """Mean of |reference - other|."""
        return self._abs / self.elements if self.elements else 0.0


def to_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values for JSON, which has no infinity and no NaN: those as text, which `float` reads back."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _difference(x: Tensor, y: Tensor) -> Tensor:
    """x - y; 0 where both are the same infinity, infinite where either is NaN."""
    return torch.where(x == y, 0.0, x - y).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _pair(reference: Values, other: Values) -> tuple[Tensor, Tensor]:
    x, y = _double(reference), _double(other)
    if x.shape != y.shape:
        raise InputError(f"the tensors differ in shape: reference {tuple(x.shape)}, other {tuple(y.shape)}")
    return x, y.to(x.device)


def _double(value: Values) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().double()
    return torch.from_numpy(np.array(value, np.float64, order="C"))
