# SPDX-License-Identifier: Apache-2.0
"""Two operands that broadcast, in files: quantized ones against 200-bit arithmetic, plain ones against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_operator import Grid, check, grid, integers, mp, run
from real_cases import COMPARED

NONE = {"fused_activation_function": "NONE"}


def _floor_mod(a: Any, b: Any) -> Any:
    return a - mp.floor(a / b) * b


#: name -> (options, in float64, in 200 bits, rounded correctly everywhere)
OPERATIONS: dict[str, tuple[dict[str, Any], Callable[..., Any], Callable[..., Any], bool]] = {
    "ADD": ({**NONE, "pot_scale_int16": False}, np.add, lambda a, b: a + b, True),
    "SUB": ({**NONE, "pot_scale_int16": False}, np.subtract, lambda a, b: a - b, True),
    "MUL": (NONE, np.multiply, lambda a, b: a * b, True),
    "DIV": (NONE, np.divide, lambda a, b: a / b, True),
    "MAXIMUM": ({}, np.maximum, max, True),
    "MINIMUM": ({}, np.minimum, min, True),
    "SQUARED_DIFFERENCE": ({}, lambda a, b: (a - b) ** 2, lambda a, b: (a - b) ** 2, True),
}
GRIDS = {
    "int16": (grid("int16", 3e-4), grid("int16", 1.7e-4), grid("int16", 2.3e-4)),
    "int16 offset": (grid("int16", 1e-3, -1000), grid("int16", 7e-4, 55), grid("int16", 2e-3, 12345)),
    "int16 powers": (grid("int16", 2.0**-8), grid("int16", 2.0**-9), grid("int16", 2.0**-8)),
    "int16 thirds": (grid("int16", 5.0), grid("int16", 5.0), grid("int16", 6.0)),
    "int8": (grid("int8", 0.05, 3), grid("int8", 0.03, -7), grid("int8", 0.06, 1)),
    "uint8": (grid("uint8", 0.05, 128), grid("uint8", 0.03, 0), grid("uint8", 0.06, 200)),
    "int4": (grid("int4", 0.5, 1), grid("int4", 0.25, 0), grid("int4", 1.0, -2)),
    "uint4": (grid("uint4", 0.5, 8), grid("uint4", 0.25, 3), grid("uint4", 1.0, 4)),
}
SHAPES = [((3, 257), (3, 257)), ((5, 31), (31,)), ((5, 31), (5, 1)), ((1,), (7, 9)), ((2, 1, 3, 1, 5), (1, 4, 1, 7, 1))]


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_quantized(name: str, grids: str, tmp_path: Path) -> None:
    options, real, wide, correctly = OPERATIONS[name]
    left, right, out = GRIDS[grids]
    generator = np.random.default_rng(3)
    for a_shape, b_shape in SHAPES:
        a, b = integers(generator, left, a_shape), integers(generator, right, b_shape)
        shape = np.broadcast_shapes(a_shape, b_shape)
        (got,) = run(tmp_path, name, [(a, left), (b, right)], [(shape, out)], options, constant=[1])
        x, z = (v.reshape(-1) for v in np.broadcast_arrays(left.reals(a), right.reals(b)))
        with np.errstate(all="ignore"):
            approximate = real(x, z).reshape(shape)
        check(got, approximate, _exact(wide, x, z), out, correctly=correctly)


def _exact(wide: Callable[..., Any], x: Any, z: Any) -> Callable[[int], Any]:
    return lambda i: wide(mp.mpf(float(x[i])), mp.mpf(float(z[i])))


def test_powers(tmp_path: Path) -> None:
    left, right, out = grid("uint8", 0.02), grid("uint8", 0.015), grid("uint8", 0.1)
    generator = np.random.default_rng(4)
    a, b = integers(generator, left, (2000,)), integers(generator, right, (2000,))
    (got,) = run(tmp_path, "POW", [(a, left), (b, right)], [((2000,), out)])
    x, z = left.reals(a), right.reals(b)
    check(got, np.power(x, z), lambda i: mp.mpf(float(x[i])) ** mp.mpf(float(z[i])), out, correctly=False)


@pytest.mark.parametrize("name", ["FLOOR_DIV", "FLOOR_MOD"])
@pytest.mark.parametrize("step", [0.1, 0.5])
def test_floors(name: str, step: float, tmp_path: Path) -> None:
    """Exact by rational arithmetic: the double quotient of multiples may reach the next integer."""
    left, right, out = grid("int16", step, 3), grid("int16", step / 2), grid("int16", 0.25)
    generator = np.random.default_rng(5)
    a, b = integers(generator, left, (600,)), integers(generator, right, (600,))
    b = np.where(right.reals(b) == 0, 7, b).astype(np.int16)
    (got,) = run(tmp_path, name, [(a, left), (b, right)], [((600,), out)])
    x, z = left.reals(a), right.reals(b)
    wide = (lambda p, q: mp.floor(p / q)) if name == "FLOOR_DIV" else _floor_mod
    values = [wide(mp.mpf(float(p)), mp.mpf(float(q))) for p, q in zip(x, z, strict=True)]
    check(got, np.array([float(v) for v in values]), lambda i: values[i], out, correctly=True)


def test_division_by_zero_is_an_end_of_the_grid(tmp_path: Path) -> None:
    of = Grid("int8", 0.5, 2)
    a, b = np.array([2, 3, 1, 10], np.int8), np.array([2, 2, 2, 4], np.int8)  # 0/0, +/0, -/0, 4/1
    (got,) = run(tmp_path, "DIV", [(a, of), (b, of)], [((4,), of)], NONE)
    assert got.tolist() == [-128, 127, -128, 10]


@pytest.mark.parametrize("fused", ["RELU", "RELU6", "RELU_N1_TO_1", "TANH"])
def test_fused_activations(fused: str, tmp_path: Path) -> None:
    left, right, out = GRIDS["int16"]
    out = grid("int16", 2.3e-4, 5)
    limits = {"RELU": (0, np.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}
    generator = np.random.default_rng(6)
    a, b = integers(generator, left, (900,)), integers(generator, right, (900,))
    (got,) = run(
        tmp_path,
        "ADD",
        [(a, left), (b, right)],
        [((900,), out)],
        {"fused_activation_function": fused, "pot_scale_int16": False},
    )
    real = left.reals(a) + right.reals(b)
    made = np.tanh(real) if fused == "TANH" else np.clip(real, *limits[fused])
    check(got, made, lambda i: mp.tanh(real[i]) if fused == "TANH" else mp.mpf(made[i]), out, correctly=False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int64"])
@pytest.mark.parametrize(
    ("name", "right"),
    [
        *((name, of[1]) for name, of in OPERATIONS.items() if name != "DIV"),
        ("FLOOR_DIV", np.floor_divide),
        ("FLOOR_MOD", np.mod),
    ],
)
def test_plain(name: str, right: Any, dtype: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    for a_shape, b_shape in SHAPES:
        a, b = ((generator.normal(0, 50, s)).astype(dtype) for s in (a_shape, b_shape))
        b = np.where(b == 0, 1, b).astype(dtype)
        shape = np.broadcast_shapes(a_shape, b_shape)
        options = OPERATIONS[name][0] if name in OPERATIONS else {}
        (got,) = run(tmp_path, name, [(a, dtype), (b, dtype)], [(shape, dtype)], options, constant=[1], threads=2)
        with np.errstate(all="ignore"):
            wide = right(a.astype(np.float64), b.astype(np.float64)) if dtype.startswith("float") else right(a, b)
            np.testing.assert_allclose(got, wide.astype(dtype), rtol=1e-3 if dtype == "float16" else 1e-6)


def test_plain_division(tmp_path: Path) -> None:
    a, b = np.array([7, -7, 7, -7, 3, 5], np.int32), np.array([2, 2, -2, -2, 0, 1], np.int32)
    (got,) = run(tmp_path, "DIV", [(a, "int32"), (b, "int32")], [((6,), "int32")], NONE)
    assert got.tolist() == [3, -3, -3, 3, 0, 5]  # to zero, as C; by zero 0
    x, z = a.astype(np.float32), b.astype(np.float32)
    (floats,) = run(tmp_path, "DIV", [(x, "float32"), (z, "float32")], [((6,), "float32")], NONE)
    with np.errstate(all="ignore"):
        assert np.array_equal(floats, x / z)


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    for left, right in ((g[0], g[1]) for g in (*GRIDS.values(), (Grid("int8", 0.5), Grid("int8", 0.25)))):
        for a_shape, b_shape in SHAPES:
            a, b = integers(generator, left, a_shape), integers(generator, right, b_shape)
            shape = np.broadcast_shapes(a_shape, b_shape)
            (got,) = run(tmp_path, name, [(a, left), (b, right)], [(shape, "bool")])
            assert np.array_equal(got, COMPARED[name](left.reals(a), right.reals(b)))
    for dtype in ("float32", "float16", "int32", "int64"):
        x, z = (generator.integers(-3, 4, 400).astype(dtype) for _ in range(2))
        (got,) = run(tmp_path, name, [(x, dtype), (z, dtype)], [((400,), "bool")], constant=[1])
        assert np.array_equal(got, COMPARED[name](x, z))


def test_logic(tmp_path: Path) -> None:
    a, b = np.array([[True], [False]]), np.array([True, False, True])
    for name, right in (("LOGICAL_AND", np.logical_and), ("LOGICAL_OR", np.logical_or), ("NOT_EQUAL", np.not_equal)):
        (got,) = run(tmp_path, name, [(a, "bool"), (b, "bool")], [((2, 3), "bool")])
        assert np.array_equal(got, right(a, b)), name
    (got,) = run(tmp_path, "LOGICAL_NOT", [(b, "bool")], [((3,), "bool")])
    assert np.array_equal(got, ~b)
