# SPDX-License-Identifier: Apache-2.0
"""Reductions, running sums and order in files: quantized ones exactly, others against NumPy."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_operator import Grid, grid, integers, run

GRIDS = {
    "int16": (grid("int16", 3e-4, 5), grid("int16", 2e-3, -7)),
    "int16 ties": (grid("int16", 2.0**-8), grid("int16", 2.0**-7)),
    "int8": (grid("int8", 0.05, 3), grid("int8", 0.4, -7)),
    "uint8": (grid("uint8", 0.05, 128), grid("uint8", 0.4, 100)),
    "int4": (grid("int4", 0.5, 1), grid("int4", 1.0, -2)),
}
REDUCTIONS = {"SUM": np.sum, "MEAN": np.mean, "REDUCE_MAX": np.max, "REDUCE_MIN": np.min}
AXES = [(2,), (0,), (1,), (0, 2), (1, 2), (-1, 0, 1), ()]


def rounded(value: Fraction, out: Grid) -> int:
    steps = value / Fraction(out.scale)
    away = int(abs(steps) + Fraction(1, 2)) * (1 if steps >= 0 else -1)
    lo, hi = out.ends
    return min(max(away + out.zero_point, lo), hi)


def groups(q: Any, axes: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """(results, values of each) and the shape of the results."""
    kept = [d for d in range(q.ndim) if d not in {a % q.ndim for a in axes}]
    reduced = [d for d in range(q.ndim) if d not in kept]
    shape = tuple(q.shape[d] for d in kept)
    return q.transpose(kept + reduced).reshape(int(np.prod(shape)), -1), shape


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, axes: tuple[int, ...], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    index = np.array(axes, np.int32)
    for of, out in GRIDS.values():
        q = integers(generator, of, (3, 5, 37))
        rows, shape = groups(q, axes)
        (got,) = run(
            tmp_path, name, [(q, of), (index, "int32")], [(shape, out)], {"keep_dims": False}, constant=[1], threads=2
        )
        right = []
        for row in rows.astype(np.int64) - of.zero_point:
            exact = {"SUM": sum, "MEAN": lambda r: Fraction(sum(r), len(r)), "REDUCE_MAX": max, "REDUCE_MIN": min}
            right.append(rounded(Fraction(exact[name]([int(v) for v in row])) * Fraction(of.scale), out))
        assert got.reshape(-1).tolist() == right, (of, out)
    for dtype in ("float32", "float16", "int32", "int64"):
        x = generator.normal(0, 30, (3, 5, 37)).astype(dtype)
        _, shape = groups(x, axes)
        kept = tuple(1 if d in {a % 3 for a in axes} else x.shape[d] for d in range(3))
        (got,) = run(tmp_path, name, [(x, dtype), (index, "int32")], [(kept, dtype)], {"keep_dims": True}, constant=[1])
        wide = x.astype(np.float64) if dtype.startswith("float") else x
        right_ = REDUCTIONS[name](wide, axis=axes, keepdims=True) if axes else x
        right_ = np.trunc(right_) if dtype.startswith("int") else right_
        np.testing.assert_allclose(got, right_, rtol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(exclusive: bool, reverse: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    options = {"exclusive": exclusive, "reverse": reverse}

    def sums(x: Any) -> Any:
        x = np.flip(x, 1) if reverse else x
        y = np.cumsum(x, 1, dtype=x.dtype) - (x if exclusive else 0)
        return np.flip(y, 1) if reverse else y

    axis = np.array([-2], np.int32)
    for of, out in GRIDS.values():
        q = integers(generator, of, (2, 9, 3))
        (got,) = run(tmp_path, "CUMSUM", [(q, of), (axis, "int32")], [(q.shape, out)], options, constant=[1])
        exact = sums(q.astype(np.int64) - of.zero_point)
        assert got.reshape(-1).tolist() == [rounded(int(v) * Fraction(of.scale), out) for v in exact.reshape(-1)]
    for dtype in ("float32", "int32", "int64"):
        x = generator.normal(0, 30, (2, 9, 3)).astype(dtype)
        (got,) = run(tmp_path, "CUMSUM", [(x, dtype), (axis, "int32")], [(x.shape, dtype)], options, constant=[1])
        np.testing.assert_allclose(got, sums(x.astype(np.float64) if dtype == "float32" else x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "int64", "int8", "int16", "uint8", "int4"])
def test_order(kind: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    of: Any = kind
    if kind in GRIDS:
        of = GRIDS[kind][0]
        q = integers(generator, of, (2, 7, 11))
    else:
        q = generator.normal(0, 3, (2, 7, 11)).astype(kind)
    for name, right in (("ARG_MAX", np.argmax), ("ARG_MIN", np.argmin)):
        for index in ("INT32", "INT64"):
            for axis in (0, 1, -1):
                place = np.array([axis], np.int32)
                expected = right(q, axis=axis)
                (got,) = run(
                    tmp_path,
                    name,
                    [(q, of), (place, "int32")],
                    [(expected.shape, index.lower())],
                    {"output_type": index},
                    constant=[1],
                )
                assert np.array_equal(got, expected)
    k = np.array([4], np.int32)
    values, places = run(
        tmp_path, "TOPK_V2", [(q, of), (k, "int32")], [((2, 7, 4), of), ((2, 7, 4), "int32")], constant=[1]
    )
    expected = np.argsort(-q.astype(np.float64), axis=-1, kind="stable")[..., :4]
    assert np.array_equal(places, expected)
    assert np.array_equal(values, np.take_along_axis(q, expected, -1))
