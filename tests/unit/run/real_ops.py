# SPDX-License-Identifier: Apache-2.0
"""One operator on random integers: what the runner gives, and what is right by arithmetic of 200 bits.

Arrays of real numbers are NumPy arrays of mpmath objects; sums of products are exact integers first. The operators are
in real_cases.py, the judges in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from one_operator import RANGES, Grid, channels, grid, integers, mp, run, stored

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Data:
    """Random integers on a grid, `step` in units of the type's usual one. `all`: every integer, or 1 in 31 of int16."""

    shape: tuple[int, ...]
    step: float = 1.0
    positive: bool = False
    all: bool = False


@dataclass(frozen=True)
class Weight:
    """Constant, with a scale for each channel along `axis`; of an unsigned type with a zero point for each, too."""

    shape: tuple[int, ...]
    axis: int


@dataclass(frozen=True)
class Bias:
    """Constant, on the grid of data times weight."""

    count: int


@dataclass(frozen=True)
class Case:
    """Operands that are arrays are constants, None is absent.

    `real` takes the numbers of Data and gives those of the output (or a list; arrays of plain types where there is no
    grid). With `product` it takes q - zero_point of data and weights and gives integer sums. `moves`: every operand and
    output is on the first one's grid.
    """

    operator: str
    operands: Sequence[Any]
    real: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    moves: bool = False
    product: bool = False
    fixed: dict[str, Grid] = field(default_factory=dict)  # grids of the output that runtimes insist on

    @property
    def weighted(self) -> bool:
        return any(isinstance(operand, Weight) for operand in self.operands)


@dataclass(frozen=True)
class Judged:
    """A file that was run: what went in, what came out, what is right."""

    path: Path
    given: list[Array]
    reals: list[Array]  # of `given`, float64
    got: list[Array]
    right: list[Array]
    on_grid: list[bool]  # of each output
    out: Grid

    def apart(self, other: Sequence[Array]) -> Array:
        """By how many steps each element of a judge's integers is off the runner's; of 100, where there is no grid."""
        pairs = zip(other, self.got, self.on_grid, strict=True)
        return np.concatenate(
            [np.abs(a.astype(np.int64) - b.astype(np.int64)).reshape(-1) * (1 if on else 100) for a, b, on in pairs]
        )


def each(function: Callable[..., Any]) -> Callable[[Array], Array]:
    return np.frompyfunc(function, 1, 1)  # type: ignore[return-value]


wide = each(mp.mpf)


def rounded(reals: Array, out: Grid) -> Array:
    """Half away from zero, once, saturating."""
    low, high = out.ends
    half = mp.mpf(0.5)

    def one(value: Any) -> int:
        steps = value / mp.mpf(out.scale)
        return min(max(int(mp.sign(steps) * mp.floor(abs(steps) + half)) + out.zero_point, low), high)

    return np.asarray(each(one)(reals)).astype(stored(out.dtype))


def judge(case: Case, dtype: str, folder: Path, weight: str = "int8", seed: int = 0) -> Judged:
    """Runs `case` on data of `dtype`, with weights of type `weight` where it has any."""
    made = _Operands(case, dtype, weight, np.random.default_rng(seed))
    results = made.results()
    values = results if isinstance(results, list) else [results]
    out = case.fixed.get(dtype) or (made.data[0] if case.moves else _fitted(dtype, values))
    kinds = [(value.shape, out if value.dtype == object else str(value.dtype)) for value in values]
    got = run(folder, case.operator, made.operands, kinds, case.options, constant=made.constant)
    right = [rounded(value, out) if value.dtype == object else value for value in values]
    on_grid = [value.dtype == object for value in values]
    return Judged(folder / "one.circle", made.given, made.reals, got, right, on_grid, out)


class _Operands:
    """Random operands, in the order of the operator's inputs."""

    def __init__(self, case: Case, dtype: str, weight: str, random: np.random.Generator) -> None:
        self.case, self.dtype, self.weight, self.random = case, dtype, weight, random
        self.operands: list[tuple[Any, Any]] = []
        self.constant: list[int] = []
        self.given: list[Array] = []
        self.reals: list[Array] = []
        self.data: list[Grid] = []
        for place, operand in enumerate(case.operands):
            if isinstance(operand, Data):
                self._data(operand)
            else:
                self.constant.append(place)
                self.operands.append(self._constant(operand) if operand is not None else (None, None))

    def results(self) -> Any:
        """The output's real numbers."""
        if not self.case.product:
            with np.errstate(all="ignore"):
                return self.case.real(*(wide(real.astype(object)) for real in self.reals))
        factors = self.operands[:2]
        sums = self.case.real(*(of.steps(q) for q, of in factors))
        scales = [np.array(of.scales, object) for _, of in factors]
        total = wide(sums.astype(object)) * wide(scales[0]) * wide(scales[1])
        return total + wide(self._bias().astype(object)) if self._has_bias() else total

    def _has_bias(self) -> bool:
        return isinstance(self.case.operands[-1], Bias)

    def _bias(self) -> Array:
        q, of = self.operands[-1]
        return of.reals(q)

    def _data(self, operand: Data) -> None:
        low, high = RANGES[self.dtype]
        usual, zeros = {
            "int16": (2e-4, (0, 0)),
            "int8": (0.04, (3, -7)),
            "uint8": (0.04, (120, 131)),
        }[self.dtype]
        first = not self.data or self.case.moves
        of = grid(self.dtype, usual * operand.step, zeros[0 if first else 1])
        q = integers(self.random, of, operand.shape)
        if operand.all:
            q = np.arange(low, high + 1, 31 if self.dtype == "int16" else 1).astype(self.dtype)
        if operand.positive:
            q = np.maximum(q, of.zero_point + 1).astype(self.dtype)
        self.data.append(of)
        self.operands.append((q, of))
        self.given.append(q)
        self.reals.append(of.reals(q))

    def _constant(self, operand: Any) -> tuple[Array, Any]:
        if isinstance(operand, Weight):
            low, high = RANGES[self.weight]
            count = operand.shape[operand.axis]
            unsigned = self.weight.startswith("uint")
            zeros = self.random.integers(low, high + 1, count) if unsigned else np.zeros(count, np.int64)
            scales = self.random.uniform(0.02, 0.4, count) / (high - low) * 2
            q = self.random.integers(low if unsigned else -high, high + 1, operand.shape)
            return q.astype(stored(self.weight)), channels(self.weight, scales, operand.axis, zeros)
        if isinstance(operand, Bias):
            scales = np.float32(self.data[0].scale) * np.array(self.operands[1][1].scales, np.float32)
            dtype = "int64" if self.dtype == "int16" else "int32"
            most = int(0.5 / scales.mean())
            return self.random.integers(-most, most + 1, operand.count).astype(dtype), channels(dtype, scales)
        return operand, str(operand.dtype)


def _fitted(dtype: str, values: Sequence[Array]) -> Grid:
    """A grid that cuts off the outer tenth."""
    low, high = RANGES[dtype]
    top = max((float(abs(v).max()) for v in values if v.dtype == object), default=1.0)
    return grid(dtype, 1.8 * top / (high - low), {"int8": -5, "uint8": 123}.get(dtype, 0))
