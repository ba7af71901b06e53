# SPDX-License-Identifier: Apache-2.0
"""Operators that move, choose and convert values in the runner, judged by TICO's runtime where it has them, else by
NumPy. Every value is the same: nothing is computed but a grid's real numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import pyquant.circle
from pyquant.ops import quantize
from pyquant.verify.runtimes import tico
from tests.golden.build import PlanBuilder

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
MOVED = ["float32", "int32", "int64", "uint8", "int8", "int16"]
SCALE, ZERO = 0.037, {"uint8": 117, "int8": -5, "int16": 0}


class Graph:
    """One operator: its operands by name, its inputs' values as stored."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = PlanBuilder("moves", "one operator")
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def data(self, name: str, dtype: str, shape: Sequence[int], scale: float = SCALE) -> np.ndarray:
        if dtype in LIMITS:
            low, high = LIMITS[dtype]
            value = self.random.integers(low, high, shape, endpoint=True).astype(dtype)
        elif dtype == "bool":
            value = self.random.integers(0, 2, shape).astype(bool)
        elif dtype.startswith("int"):
            value = self.random.integers(-1000, 1000, shape).astype(dtype)
        else:
            value = (40 * self.random.standard_normal(shape)).astype(dtype)
        return self.given(name, value, scale)

    def given(self, name: str, value: np.ndarray, scale: float = SCALE) -> np.ndarray:
        self._tensor(name, str(value.dtype), value.shape, scale)
        self.inputs[name] = value
        return value

    def constant(self, name: str, value: object, dtype: str = "int32") -> None:
        array = np.asarray(value, dtype)
        self.builder.tensor(name, dtype, list(array.shape), data=array)

    def output(self, name: str, dtype: str, shape: Sequence[int], scale: float = SCALE) -> None:
        self._tensor(name, dtype, shape, scale)
        self.outputs.append(name)

    def _tensor(self, name: str, dtype: str, shape: Sequence[int], scale: float) -> None:
        grid = {"scale": scale, "zero_point": ZERO[dtype]} if dtype in LIMITS else {}
        self.builder.tensor(name, dtype, list(shape), **grid)

    def run(self, folder: Path, op: str, operands: Sequence[str], **options: object) -> tuple[Path, list[np.ndarray]]:
        """The file, and the outputs as stored (the same with two threads)."""
        self.builder.op(op, list(operands), self.outputs, **options)
        self.builder.graph(list(self.inputs), self.outputs)
        path = folder / "x.circle"
        pyquant.circle.write(self.builder.text(), self.builder.constants, path)
        once, again = (pyquant.circle.Runner(path, threads=n).run(self.inputs) for n in (1, 2))
        for name in self.outputs:
            np.testing.assert_array_equal(once[name], again[name])
        return path, [once[name] for name in self.outputs]

    def real(self, value: np.ndarray, scale: float = SCALE) -> np.ndarray:
        """The numbers that stored values of this graph stand for."""
        if str(value.dtype) not in LIMITS:
            return value
        return (value.astype(np.float32) - ZERO[str(value.dtype)]) * np.float32(scale)

    def equals_tico(self, path: Path, got: Sequence[np.ndarray]) -> None:
        inputs = {name: torch.from_numpy(self.real(value)) for name, value in self.inputs.items()}
        expected = tico.run(path, inputs)
        for name, value in zip(self.outputs, got, strict=True):
            np.testing.assert_array_equal(self.real(value), expected[name].numpy())


Move = Callable[[Graph, str], tuple[str, list[str], dict[str, object]]]


def _reshape(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [2, 3, 4])
    g.constant("s", [4, 6])
    g.output("y", dtype, [4, 6])
    return "RESHAPE", ["x", "s"], {}


def _transpose(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [5, 70, 66])
    g.constant("p", [2, 0, 1])
    g.output("y", dtype, [66, 5, 70])
    return "TRANSPOSE", ["x", "p"], {}


def _concatenation(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("a", dtype, [2, 3, 4])
    g.data("b", dtype, [2, 2, 4])
    g.output("y", dtype, [2, 5, 4])
    return "CONCATENATION", ["a", "b"], {"axis": -2}


def _split(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.constant("k", 1)
    g.data("x", dtype, [3, 6])
    for name in "uvw":
        g.output(name, dtype, [3, 2])
    return "SPLIT", ["k", "x"], {"num_splits": 3}


def _split_v(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [3, 7])
    g.constant("s", [1, -1, 4])
    g.constant("k", 1)
    for name, size in (("u", 1), ("v", 2), ("w", 4)):
        g.output(name, dtype, [3, size])
    return "SPLIT_V", ["x", "s", "k"], {"num_splits": 3}


def _slice(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [4, 9])
    g.constant("b", [1, 2])
    g.constant("s", [-1, 5])
    g.output("y", dtype, [3, 5])
    return "SLICE", ["x", "b", "s"], {}


def _strided_slice(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [4, 9, 3])
    for name, value in (("b", [0, -2, 1]), ("e", [4, 0, 0]), ("s", [2, -3, 1])):
        g.constant(name, value)
    g.output("y", dtype, [2, 3])
    return "STRIDED_SLICE", ["x", "b", "e", "s"], {"end_mask": 1, "shrink_axis_mask": 4}


def _pad(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [2, 3])
    g.constant("p", [[1, 0], [2, 3]])
    g.output("y", dtype, [3, 8])
    return "PAD", ["x", "p"], {}


def _padv2(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [2, 3])
    g.constant("p", [[1, 0], [2, 3]])
    g.data("v", dtype, [1])
    g.output("y", dtype, [3, 8])
    return "PADV2", ["x", "p", "v"], {}


def _broadcast_to(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [3, 1, 4])
    g.constant("s", [2, 3, 5, 4])
    g.output("y", dtype, [2, 3, 5, 4])
    return "BROADCAST_TO", ["x", "s"], {}


def _gather(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [3, 11, 5])
    g.given("i", g.random.integers(0, 11, [2, 4]).astype(np.int32))
    g.output("y", dtype, [3, 2, 4, 5])
    return "GATHER", ["x", "i"], {"axis": 1}


def _gather_nd(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("x", dtype, [3, 11, 5])
    g.given("i", g.random.integers(0, 3, [2, 4, 2]).astype(np.int32))
    g.output("y", dtype, [2, 4, 5])
    return "GATHER_ND", ["x", "i"], {}


def _select_v2(g: Graph, dtype: str) -> tuple[str, list[str], dict[str, object]]:
    g.data("c", "bool", [3, 1])
    g.data("a", dtype, [4])
    g.data("b", dtype, [2, 3, 4])
    g.output("y", dtype, [2, 3, 4])
    return "SELECT_V2", ["c", "a", "b"], {}


MOVES: list[Move] = [
    _reshape, _transpose, _concatenation, _split, _split_v, _slice, _strided_slice, _pad, _padv2, _broadcast_to,
    _gather, _gather_nd, _select_v2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", MOVED)
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__.strip("_"))
def test_moves_equal_tico(move: Move, dtype: str, tmp_path: Path) -> None:
    graph = Graph()
    op, operands, options = move(graph, dtype)
    graph.equals_tico(*graph.run(tmp_path, op, operands, **options))


@pytest.mark.parametrize("dtype", MOVED)
def test_moves_that_tico_lacks_equal_numpy(dtype: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.data("x", dtype, [3, 4])
    g.constant("n", [2, 3])
    g.output("y", dtype, [6, 12])
    np.testing.assert_array_equal(g.run(tmp_path, "TILE", ["x", "n"])[1][0], np.tile(x, [2, 3]))

    g = Graph()
    parts = [g.data(name, dtype, [3, 4]) for name in "abc"]
    g.output("y", dtype, [3, 3, 4])
    got = g.run(tmp_path, "PACK", "abc", values_count=3, axis=1)[1][0]
    np.testing.assert_array_equal(got, np.stack(parts, 1))

    g = Graph()
    x = g.data("x", dtype, [3, 2, 4])
    for name in "uv":
        g.output(name, dtype, [3, 4])
    u, v = g.run(tmp_path, "UNPACK", ["x"], num=2, axis=1)[1]
    np.testing.assert_array_equal(np.stack([u, v], 1), x)

    g = Graph()
    index = g.given("i", np.array([[0, 3, -1], [2, 4, 1]], np.int32))
    g.constant("d", 4)
    on, off = g.data("on", dtype, []), g.data("off", dtype, [])
    g.output("y", dtype, [2, 3, 4])
    got = g.run(tmp_path, "ONE_HOT", ["i", "d", "on", "off"], axis=-1)[1][0]
    np.testing.assert_array_equal(got, np.where(index[..., None] == np.arange(4), on, off))


FLOATS = [0.0, -0.0, 0.5, 1.5, -1.5, 2.5, 126.5, 127.5, -128.5, 255.5, 1e4, -1e4, 3e38]


@pytest.mark.parametrize("to", ["float32", "int32", "int64", "bool", "uint8", "int8", "int16"])
@pytest.mark.parametrize("of", ["float32", "int32", "int64", "bool", "uint8", "int8", "int16"])
def test_cast_equals_aten_where_the_value_fits(of: str, to: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.data("x", of, [7, 41])
    if of == "float32" and to in LIMITS:
        x = np.clip(x, *LIMITS[to])
        g = Graph()
        g.given("x", x)
    g.output("y", to, x.shape)
    types = {"in_data_type": of.upper(), "out_data_type": to.upper()}
    got = g.run(tmp_path, "CAST", ["x"], **types)[1][0]
    expected = torch.from_numpy(x).to(getattr(torch, to)).numpy()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", sorted(LIMITS))
def test_quantize_and_dequantize_equal_tico_and_the_eager_tree(dtype: str, tmp_path: Path) -> None:
    g = Graph()
    x = np.concatenate([g.random.standard_normal(4000) * 3, np.array(FLOATS) * SCALE]).astype(np.float32)
    g.given("x", x)
    g.output("y", dtype, x.shape)
    path, (q,) = g.run(tmp_path, "QUANTIZE", ["x"])
    g.equals_tico(path, [q])
    low, high = LIMITS[dtype]
    scale, zero = torch.tensor(SCALE), torch.tensor(ZERO[dtype], dtype=torch.int32)
    eager = quantize(torch.from_numpy(x), scale, zero, None, 0, low, high, getattr(torch, dtype))
    np.testing.assert_array_equal(q, eager.numpy())

    g = Graph()
    g.data("x", dtype, [4000])
    g.output("y", "float32", [4000])
    path, got = g.run(tmp_path, "DEQUANTIZE", ["x"])
    g.equals_tico(path, got)


@pytest.mark.parametrize("to", sorted(LIMITS))
@pytest.mark.parametrize("of", sorted(LIMITS))
def test_a_change_of_grid_is_rounded_once(of: str, to: str, tmp_path: Path) -> None:
    g = Graph()
    x = g.data("x", of, [20000])
    g.output("y", to, [20000], scale=0.0513)
    got = g.run(tmp_path, "QUANTIZE", ["x"])[1][0]
    steps = (x.astype(np.float64) - ZERO[of]) * np.float64(np.float32(SCALE)) / np.float64(np.float32(0.0513))
    expected = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + ZERO[to]
    np.testing.assert_array_equal(got, np.clip(expected, *LIMITS[to]))
    simulated = tico.run(tmp_path / "x.circle", {"x": torch.from_numpy(g.real(x))})["y"].numpy()
    assert np.abs(np.round(simulated / np.float32(0.0513)) + ZERO[to] - got).max() <= 1


def test_an_index_outside_the_table_is_named(tmp_path: Path) -> None:
    g = Graph()
    g.data("x", "int8", [5, 3])
    g.given("i", np.array([1, 7, 0], np.int32))
    g.output("y", "int8", [3, 3])
    with pytest.raises(pyquant.errors.CircleError, match=r"E_RUN_VALUE.*index at \[1\] is 7, expected 0 to 4"):
        g.run(tmp_path, "GATHER", ["x", "i"])


def test_a_shape_that_is_computed_is_checked(tmp_path: Path) -> None:
    """RESHAPE shares its input's memory, but not where its shape is an input: then the values have to give it."""
    for values, fits in (([2, 6], True), ([3, 4], False)):
        g = Graph()
        g.data("x", "int8", [3, 4])
        g.given("s", np.array(values, np.int32))
        g.builder.tensor("v", "int8", [2, 6], scale=SCALE, zero_point=ZERO["int8"])
        g.builder.op("RESHAPE", ["x", "s"], ["v"])
        g.output("y", "int8", [2, 6])
        g.constant("t", [2, 6])
        if fits:
            y = g.run(tmp_path, "RESHAPE", ["v", "t"])[1][0]
            np.testing.assert_array_equal(y, g.inputs["x"].reshape(2, 6))
        else:
            with pytest.raises(pyquant.errors.CircleError, match=r"E_RUN_SHAPE.*\[3, 4\], expected \[2, 6\]"):
                g.run(tmp_path, "RESHAPE", ["v", "t"])
