# SPDX-License-Identifier: Apache-2.0
"""Functions of one value in files: every 8-bit and every int16 integer against 200-bit arithmetic, and floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_operator import Grid, check, every, grid, mp, run

erf = np.vectorize(math.erfc, otypes=[np.float64])


def _half(x: Any, tail: Any) -> Any:
    return x * tail / 2


#: name -> (options, in float64, in 200 bits, rounded correctly everywhere)
FUNCTIONS: dict[str, tuple[dict[str, Any], Callable[[Any], Any], Callable[[Any], Any], bool]] = {
    "NEG": ({}, np.negative, lambda x: -x, True),
    "ABS": ({}, np.abs, abs, True),
    "SQRT": ({}, np.sqrt, mp.sqrt, True),
    "RSQRT": ({}, lambda x: 1 / np.sqrt(x), lambda x: 1 / mp.sqrt(x), True),
    "EXP": ({}, np.exp, mp.exp, False),
    "LOG": ({}, np.log, mp.log, False),
    "SQUARE": ({}, np.square, lambda x: x * x, True),
    "FLOOR": ({}, np.floor, mp.floor, True),
    "CEIL": ({}, np.ceil, mp.ceil, True),
    "ROUND": ({}, np.round, mp.nint, True),
    "SIN": ({}, np.sin, mp.sin, False),
    "COS": ({}, np.cos, mp.cos, False),
    "TANH": ({}, np.tanh, mp.tanh, False),
    "LOGISTIC": ({}, lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + mp.exp(-x)), False),
    "RELU": ({}, lambda x: np.maximum(x, 0), lambda x: max(x, mp.mpf(0)), True),
    "RELU6": ({}, lambda x: np.clip(x, 0, 6), lambda x: min(max(x, mp.mpf(0)), mp.mpf(6)), True),
    "GELU": (
        {"approximate": False},
        lambda x: _half(x, erf(-x / math.sqrt(2))),
        lambda x: _half(x, mp.erfc(-x / mp.sqrt(2))),
        False,
    ),
    "GELU tanh": (
        {"approximate": True},
        lambda x: x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        lambda x: x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3))),
        False,
    ),
    "ELU": (
        {},
        lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
        lambda x: mp.expm1(x) if x < 0 else x,
        False,
    ),
    "LEAKY_RELU": (
        {"alpha": 0.1},
        lambda x: np.where(x < 0, x * float(np.float32(0.1)), x),
        lambda x: x * mp.mpf(float(np.float32(0.1))) if x < 0 else x,
        True,
    ),
}
#: of the input and the output
GRIDS = {
    "int8": (grid("int8", 0.05, 3), grid("int8", 0.03, -7)),
    "uint8": (grid("uint8", 0.04, 120), grid("uint8", 0.02, 101)),
    "int16": (grid("int16", 3e-4), grid("int16", 1.7e-4)),
    "int16 ties": (grid("int16", 2.0**-9), grid("int16", 2.0**-8)),
    "int16 offset": (grid("int16", 1e-3, -1000), grid("int16", 7e-4, 12345)),
    "int4": (grid("int4", 0.7, 1), grid("int4", 0.5, -2)),
    "uint4": (grid("uint4", 0.7, 8), grid("uint4", 0.5, 3)),
}


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_integer(name: str, grids: str, tmp_path: Path) -> None:
    options, real, wide, correctly = FUNCTIONS[name]
    of, out = GRIDS[grids]
    q = every(of)
    (got,) = run(tmp_path, name.split()[0], [(q, of)], [(q.shape, out)], options)
    x = of.reals(q)
    with np.errstate(all="ignore"):
        check(got, real(x), lambda i: wide(mp.mpf(float(x[i]))), out, correctly=correctly)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_few_elements_are_as_many(name: str, tmp_path: Path) -> None:
    """Before a table is made, values are computed one by one."""
    of, out = GRIDS["int16 offset"]
    q = every(of)
    operator, options = name.split()[0], FUNCTIONS[name][0]
    (whole,) = run(tmp_path, operator, [(q, of)], [(q.shape, out)], options)
    (part,) = run(tmp_path, operator, [(q[:40000], of)], [((40000,), out)], options)
    assert np.array_equal(part, whole[:40000])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_floats(name: str, tmp_path: Path) -> None:
    options, real, _, _ = FUNCTIONS[name]
    x = np.random.default_rng(1).normal(0, 4, 4001).astype(np.float32)
    for array, dtype in ((x, "float32"), (x.astype(np.float16), "float16")):
        (got,) = run(tmp_path, name.split()[0], [(array, dtype)], [(array.shape, dtype)], options)
        with np.errstate(all="ignore"):
            right = real(array.astype(np.float64)).astype(array.dtype)
        np.testing.assert_allclose(got, right, rtol=2e-7 if dtype == "float32" else 1e-3, atol=1e-12)


def test_bfloat16(tmp_path: Path) -> None:
    x = torch.randn(77, dtype=torch.bfloat16)
    bits = x.view(torch.uint16).numpy()
    (got,) = run(tmp_path, "EXP", [(bits, "bfloat16")], [(bits.shape, "bfloat16")])
    assert torch.equal(torch.from_numpy(got).view(torch.bfloat16), x.float().exp().bfloat16())


@pytest.mark.parametrize(("name", "right"), [("NEG", np.negative), ("ABS", np.abs), ("SQUARE", np.square)])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_plain_integers(name: str, right: Any, dtype: str, tmp_path: Path) -> None:
    ends = np.iinfo(dtype)
    x = np.array([0, 1, -1, 7, -7, ends.min, ends.max], dtype)
    (got,) = run(tmp_path, name, [(x, dtype)], [(x.shape, dtype)])
    assert np.array_equal(got, right(x))


def test_outside_the_domain_is_an_end_of_the_grid(tmp_path: Path) -> None:
    of, out = Grid("int8", 0.5, 0), Grid("int8", 0.25, 3)
    q = np.array([-3, 0, 4], np.int8)
    expected = {"LOG": [-128, -128, 6], "SQRT": [-128, 3, 9], "RSQRT": [-128, 127, 6]}
    for name, right in expected.items():
        (got,) = run(tmp_path, name, [(q, of)], [(q.shape, out)])
        assert got.tolist() == right, name
