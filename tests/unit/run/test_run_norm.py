# SPDX-License-Identifier: Apache-2.0
"""Softmax, norms and ROPE in files, against 200-bit arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_operator import Grid, check, grid, integers, mp, run

DTYPES = ["int16", "int8", "uint8", "int4", "float32"]


def data(generator: np.random.Generator, dtype: str, shape: tuple[int, ...], step: float) -> tuple[Any, Any, Any]:
    """Stored values, their grid (or dtype), and the real numbers."""
    if dtype == "float32":
        x = generator.normal(0, 2, shape).astype(np.float32)
        return x, dtype, x.astype(np.float64)
    of = grid(dtype, step, 3)
    q = integers(generator, of, shape)
    return q, of, of.reals(q)


def same(got: Any, approximate: Any, exact: Any, out: Any, correctly: bool = False) -> None:
    if isinstance(out, Grid):
        check(got, approximate, exact, out, correctly=correctly)
    else:
        np.testing.assert_allclose(got, approximate, rtol=1.3e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
def test_softmax(log: bool, dtype: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for size in (1, 7, 100, 300):
        q, of, x = data(generator, dtype, (2, 3, size), {"int16": 3e-4, "int4": 0.5}.get(dtype, 0.06))
        fixed = {"int16": (1 / 32768, 0), "int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int4": (1 / 16, -8)}
        logs = {"int16": (1e-3, 0), "int8": (0.1, 127), "uint8": (0.1, 255), "int4": (1.0, 7)}
        out = "float32" if dtype == "float32" else grid(dtype, *(logs if log else fixed)[dtype])
        beta = 1.0 if log else 0.5
        (got,) = run(
            tmp_path,
            "LOG_SOFTMAX" if log else "SOFTMAX",
            [(q, of)],
            [(q.shape, out)],
            {} if log else {"beta": beta},
            threads=2,
        )
        shifted = (x - x.max(-1, keepdims=True)) * beta
        total = np.exp(shifted).sum(-1, keepdims=True)
        approximate = shifted - np.log(total) if log else np.exp(shifted) / total
        rows = shifted.reshape(-1, size)

        def exact(i: int, rows: Any = rows, size: int = size) -> Any:
            row = [mp.mpf(v) for v in rows[i // size]]
            whole = mp.fsum(mp.exp(v) for v in row)
            return row[i % size] - mp.log(whole) if log else mp.exp(row[i % size]) / whole

        same(got, approximate, exact, out)


@pytest.mark.parametrize("gamma_kind", ["same", "int8 per tensor", "one"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: str, gamma_kind: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    epsilon = float(np.float32(1e-6))
    for size in (1, 64, 301):
        q, of, x = data(generator, dtype, (1, 3, size), 3e-4 if dtype == "int16" else 0.06)
        out = "float32" if dtype == "float32" else grid(dtype, {"int16": 1.5e-4, "int4": 0.4}.get(dtype, 0.03), 2)
        gamma_of: Any = grid("int16", 1e-4) if dtype != "float32" else "float32"
        if gamma_kind == "int8 per tensor":
            gamma_of = grid("int8", 0.02, 5)
        count = 1 if gamma_kind == "one" else size
        if isinstance(gamma_of, Grid):
            stored = integers(generator, gamma_of, (count,))
            gamma = gamma_of.reals(stored)
        else:
            stored = generator.normal(1, 0.3, count).astype(np.float32)
            gamma = stored.astype(np.float64)
        for constant in ([1], []):
            (got,) = run(
                tmp_path,
                "RMS_NORM",
                [(q, of), (stored, gamma_of)],
                [(q.shape, out)],
                {"epsilon": epsilon},
                constant=constant,
            )
            approximate = gamma * x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)

            def exact(i: int, x: Any = x, size: int = size, gamma: Any = gamma) -> Any:
                row = [mp.mpf(v) for v in x.reshape(-1, size)[i // size]]
                scale = mp.sqrt(mp.fsum(v * v for v in row) / size + mp.mpf(epsilon))
                return mp.mpf(gamma[i % size if gamma.size > 1 else 0]) * row[i % size] / scale

            same(got, approximate, exact, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instance_norm(dtype: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    shape = (2, 3, 5, 35)
    q, of, x = data(generator, dtype, shape, 3e-4 if dtype == "int16" else 0.06)
    out = "float32" if dtype == "float32" else grid(dtype, {"int16": 1.5e-4, "int4": 0.4}.get(dtype, 0.03), 2)
    parameters = []
    for offset in (1.0, 0.0):
        if dtype == "float32":
            value = generator.normal(offset, 0.3, 35).astype(np.float32)
            parameters.append((value, "float32", value.astype(np.float64)))
        else:
            kind = grid("int8", 0.02, 5)
            value = integers(generator, kind, (35,))
            parameters.append((value, kind, kind.reals(value)))
    (gamma, gamma_of, g), (beta, beta_of, b) = parameters
    epsilon = float(np.float32(1e-5))
    (got,) = run(
        tmp_path,
        "INSTANCE_NORM",
        [(q, of), (gamma, gamma_of), (beta, beta_of)],
        [(shape, out)],
        {"epsilon": epsilon, "fused_activation_function": "NONE"},
        constant=[1, 2],
    )
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    approximate = g * (x - mean) / np.sqrt(variance + epsilon) + b

    def exact(i: int) -> Any:
        n, h, w, c = np.unravel_index(i, shape)
        column = [mp.mpf(v) for v in x[n, :, :, c].reshape(-1)]
        middle = mp.fsum(column) / 15
        spread = mp.fsum((v - middle) ** 2 for v in column) / 15
        return mp.mpf(g[c]) * (mp.mpf(x[n, h, w, c]) - middle) / mp.sqrt(spread + mp.mpf(epsilon)) + mp.mpf(b[c])

    if dtype == "float32":
        np.testing.assert_allclose(got, approximate, rtol=1e-6, atol=1e-7)
    else:
        same(got, approximate, exact, out)


@pytest.mark.parametrize("mode", ["GPT_NEOX", "GPT_J"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope(dtype: str, mode: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    shape = (1, 2, 3, 16)
    q, of, x = data(generator, dtype, shape, 3e-4 if dtype == "int16" else 0.06)
    out = "float32" if dtype == "float32" else grid(dtype, 4e-4 if dtype == "int16" else 0.07, 2)
    for table in ((1, 1, 3, 16), (1, 1, 1, 16), (16,), (1, 2, 3, 1)):
        kind: Any = "float32" if dtype == "float32" else grid("int16", 1 / 32768)
        values = [np.sin(generator.normal(0, 2, table)) for _ in range(2)]
        stored = [v.astype(np.float32) if dtype == "float32" else np.round(v * 32767).astype(np.int16) for v in values]
        sin, cos = (
            np.broadcast_to(v.astype(np.float64) if dtype == "float32" else kind.reals(v), shape) for v in stored
        )
        (got,) = run(
            tmp_path,
            "ROPE",
            [(q, of), (stored[0], kind), (stored[1], kind)],
            [(shape, out)],
            {"mode": mode},
            constant=[2],
        )
        if mode == "GPT_NEOX":
            turned = np.concatenate([-x[..., 8:], x[..., :8]], -1)
        else:
            turned = np.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(shape)
        flat = [np.ascontiguousarray(v).reshape(-1) for v in (x, cos, turned, sin)]

        def exact(i: int, flat: Any = flat) -> Any:
            a, c, t, s = (mp.mpf(float(v[i])) for v in flat)
            return a * c + t * s

        same(got, x * cos + turned * sin, exact, out, correctly=True)
