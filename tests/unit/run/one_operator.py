# SPDX-License-Identifier: Apache-2.0
"""A file of one operator, run natively, and the right integers by 200-bit arithmetic.

It owns building, running and rounding; what an operator computes is in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import torch

from pyquant import circle
from pyquant.circle import write as circle_write
from pyquant.exporter.plan import Graph, Op, Quant, Tensor

RANGES = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
mp = mpmath.mp.clone()
mp.prec = 200


@dataclass(frozen=True)
class Grid:
    """A quantized dtype with its scale (a float32 number) and zero point."""

    dtype: str
    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        assert self.scale == float(np.float32(self.scale))

    @property
    def ends(self) -> tuple[int, int]:
        return RANGES[self.dtype]

    def quant(self) -> Quant:
        return Quant(self.dtype, (self.scale,), (self.zero_point,), None, *self.ends)

    @property
    def scales(self) -> tuple[float, ...]:
        return (self.scale,)

    def steps(self, q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return q.astype(np.int64) - self.zero_point

    def reals(self, q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Exact: 17 bits times 24 bits."""
        return self.steps(q).astype(np.float64) * self.scale


def grid(dtype: str, scale: float, zero_point: int = 0) -> Grid:
    return Grid(dtype, float(np.float32(scale)), zero_point)


@dataclass(frozen=True)
class Channels(Grid):
    """A scale (a float32 number) and a zero point for each channel along `axis`; `scale`, `zero_point`: the first."""

    all_scales: tuple[float, ...] = ()
    zeros: tuple[int, ...] = ()
    axis: int = 0

    @property
    def scales(self) -> tuple[float, ...]:
        return self.all_scales

    def quant(self) -> Quant:
        return Quant(self.dtype, self.scales, self.zeros, self.axis, *self.ends)

    def steps(self, q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return q.astype(np.int64) - np.array(self.zeros).reshape(self._along(q))

    def reals(self, q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.steps(q).astype(np.float64) * np.array(self.scales).reshape(self._along(q))

    def _along(self, q: np.ndarray[Any, Any]) -> list[int]:
        return [-1 if axis == self.axis else 1 for axis in range(q.ndim)]


def channels(dtype: str, scales: np.ndarray[Any, Any], axis: int = 0, zeros: Any = 0) -> Channels:
    numbers = tuple(float(scale) for scale in scales.astype(np.float32))
    points = tuple(int(zero) for zero in np.broadcast_to(zeros, len(numbers)))
    return Channels(dtype, numbers[0], points[0], numbers, points, axis)


def pack(q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """4-bit integers, two in a byte."""
    flat = q.astype(np.int64).reshape(-1) & 15
    flat = np.pad(flat, (0, flat.size % 2))
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)


def unpack(packed: np.ndarray[Any, Any], shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[: int(np.prod(shape))].astype(np.int64)
    return np.where((dtype == "int4") & (nibbles > 7), nibbles - 16, nibbles).reshape(shape)


def run(
    folder: Path,
    name: str,
    inputs: Sequence[tuple[Any, Any]],
    outputs: Sequence[tuple[Sequence[int], Any]],
    options: dict[str, Any] | None = None,
    *,
    constant: Sequence[int] = (),
    threads: int = 1,
) -> list[np.ndarray[Any, Any]]:
    """Outputs of operator `name`. An operand is (array, or shape; Grid or dtype), or
    (None, None) where it is absent. `constant`: inputs in the file."""
    tensors, constants, given, places, order = [], [], [], [], []
    for i, (array, kind) in enumerate(inputs):
        order.append(-1 if array is None else len(tensors))
        if array is None:
            continue
        four = isinstance(kind, Grid) and kind.dtype in ("int4", "uint4")
        stored = pack(array) if four else array
        index = None
        if i in constant:
            constants.append(torch.from_numpy(np.ascontiguousarray(stored)))
            index = len(constants) - 1
        else:
            given.append(stored)
            places.append(len(tensors))
        tensors.append(_tensor(f"x{i}", array.shape, kind, index))
    count = len(tensors)
    tensors += [_tensor(f"y{i}", shape, kind, None) for i, (shape, kind) in enumerate(outputs)]
    op = Op(name, tuple(order), tuple(range(count, len(tensors))), options or {})
    graph = Graph(name, tuple(tensors), (op,), tuple(places), op.outputs, tuple(constants))
    path = folder / "one.circle"
    circle_write(graph.to_json(), graph.constants, path)
    made = list(circle.Runner(path, threads=threads).run(given).values())
    return [
        unpack(y, shape, kind.dtype) if isinstance(kind, Grid) and kind.dtype in ("int4", "uint4") else y
        for y, (shape, kind) in zip(made, outputs, strict=True)
    ]


def _tensor(name: str, shape: Sequence[int], kind: Any, constant: int | None) -> Tensor:
    quant = kind.quant() if isinstance(kind, Grid) else None
    return Tensor(name, kind.dtype if isinstance(kind, Grid) else kind, tuple(shape), quant, constant=constant)


def check(
    got: np.ndarray[Any, Any],
    approximate: np.ndarray[Any, Any],
    exact: Callable[[int], Any],
    out: Grid,
    *,
    correctly: bool,
) -> None:
    """`got` are the rounded values. approximate: float64, which decides away from steps; exact(i): the 200-bit value
    of element i, which decides within 1e-6 of one. `correctly`: everywhere, else not within 1e-9 of a step."""
    lo, hi = out.ends
    flat, values = got.reshape(-1).astype(np.int64), np.broadcast_to(approximate, got.shape).reshape(-1)
    with np.errstate(all="ignore"):
        v = values / out.scale
        rounded = np.trunc(np.clip(v, -1e6, 1e6) + np.copysign(0.5, v)) + out.zero_point
        right = np.where(np.isnan(v), lo, np.clip(np.nan_to_num(rounded), lo, hi)).astype(np.int64)
        inside = (rounded >= lo - 1) & (rounded <= hi + 1)
        near = np.abs(np.abs(v) % 1 - 0.5) < 1e-6 * np.maximum(1, np.abs(v) * 1e-6)
    for i in np.flatnonzero(near & inside):
        value = exact(int(i)) / mp.mpf(out.scale)
        if not correctly and abs(abs(value) % 1 - 0.5) < 1e-9:
            right[i] = flat[i]
            continue
        away = mp.floor(abs(value) + mp.mpf(0.5)) * mp.sign(value)
        right[i] = min(max(int(away) + out.zero_point, lo), hi)
    wrong = np.flatnonzero(right != flat)
    assert wrong.size == 0, (
        f"{wrong.size} of {flat.size} differ, first at {wrong[0]}: {flat[wrong[0]]}, right is {right[wrong[0]]} "
        f"({v[wrong[0]]!r} steps)"
    )


def integers(generator: np.random.Generator, of: Grid, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Random ones; the ends of the type and the neighbourhood of zero more often."""
    lo, hi = of.ends
    q = generator.integers(lo, hi + 1, shape)
    kind = generator.integers(0, 8, shape)
    near = np.clip(of.zero_point + generator.integers(-2, 3, shape), lo, hi)
    q = np.where(kind == 0, lo, np.where(kind == 1, hi, np.where(kind == 2, near, q)))
    return q.astype(stored(of.dtype))


def stored(dtype: str) -> Any:
    """The type of its arrays here: one element for each integer."""
    return np.dtype({"int4": "int8", "uint4": "uint8"}.get(dtype, dtype))


def every(of: Grid) -> np.ndarray[Any, Any]:
    """Every integer of the type."""
    lo, hi = of.ends
    return np.arange(lo, hi + 1).astype(stored(of.dtype))
