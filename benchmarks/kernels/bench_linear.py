# SPDX-License-Identifier: Apache-2.0
"""FULLY_CONNECTED in the runner of Circle files. Decoding a token (one row, 16 layers: weights come from memory):
against a plain read of the weights and ATen's float32. 256 rows: against ATen's float32 and oneDNN's int8."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import pyquant.circle
from benchmarks.rivals import Rivals, rivals
from tests.golden.build import PlanBuilder, pack4

LAYERS = 16
RANGES = {"int4": (-8, 7), "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def side(elements: int) -> int:
    """Of square weights; a multiple of 64."""
    return max(64, int(elements**0.5) // 64 * 64)


class Chain:
    """A file of `layers` linear layers on a grid each, and what it gives in float64 (whose sums are exact)."""

    def __init__(self, dtype: str, weight: str, rows: int, columns: int, depth: int, layers: int) -> None:
        random = np.random.default_rng(0)
        low, high = RANGES[dtype]
        zero = 0 if dtype in ("int16", "int8") else 128
        self.x = random.integers(low, high, (rows, depth), endpoint=True).astype(dtype)
        self.weights: list[np.ndarray] = []
        builder = PlanBuilder("chain", "linear layers")
        x_scale = 4.0 / (high - low)
        builder.tensor("x0", dtype, [rows, depth], scale=x_scale, zero_point=zero)
        expected = self.x.astype(np.float64) - zero
        for i in range(layers):
            q = random.integers(*RANGES[weight], (columns, depth), endpoint=True).astype(np.int8)
            scale = np.float32(1.0 / (RANGES[weight][1] * depth**0.5))
            packed = pack4(q) if weight == "int4" else q
            builder.tensor(f"w{i}", weight, [columns, depth], scale=float(scale), data=packed)
            builder.tensor(f"x{i + 1}", dtype, [rows, columns], scale=x_scale, zero_point=zero)
            builder.op("FULLY_CONNECTED", [f"x{i}", f"w{i}", None], [f"x{i + 1}"], keep_num_dims=True)
            self.weights.append(q)
            steps = expected @ q.astype(np.float64).T * np.float64(scale)
            expected = np.clip(np.copysign(np.floor(np.abs(steps) + 0.5), steps) + zero, low, high) - zero
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.circle"
            pyquant.circle.write(builder.graph(["x0"], [f"x{layers}"]).text(), builder.constants, path)
            self.bytes = path.read_bytes()
        self.expected = (expected + zero).astype(dtype)
        self.runner = pyquant.circle.Runner(self.bytes, threads=torch.get_num_threads())
        assert np.array_equal(self.run(), self.expected)

    def run(self) -> np.ndarray:
        return next(iter(self.runner.run([self.x]).values()))


def decode(dtype: str, weight: str, elements: int) -> Rivals:
    depth = side(elements)
    chain = Chain(dtype, weight, 1, depth, depth, LAYERS)
    x = torch.from_numpy(chain.x.astype(np.float32))
    floats = [torch.from_numpy(q.astype(np.float32)) for q in chain.weights]
    words = torch.frombuffer(bytearray(chain.bytes[: len(chain.bytes) // 8 * 8]), dtype=torch.int64)

    def float32() -> torch.Tensor:
        y = x
        for w in floats:
            y = torch.nn.functional.linear(y, w)
        return y

    return {"pyquant": chain.run, "plain read of its bytes": words.sum, "aten float32": float32}


@rivals("pyquant", "plain read of its bytes", "aten float32")
def bench_decode_w4_int16(elements: int) -> Rivals:
    return decode("int16", "int4", elements)


@rivals("pyquant", "plain read of its bytes", "aten float32")
def bench_decode_w8_uint8(elements: int) -> Rivals:
    return decode("uint8", "int8", elements)


def prefill(dtype: str, weight: str, elements: int) -> tuple[Chain, torch.Tensor, torch.Tensor]:
    depth = side(elements)
    chain = Chain(dtype, weight, 256, depth * 3, depth, 1)
    return chain, torch.from_numpy(chain.x.astype(np.float32)), torch.from_numpy(chain.weights[0].astype(np.float32))


@rivals("pyquant", "aten float32", "onednn int8")
def bench_prefill_w8_uint8(elements: int) -> Rivals:
    chain, x, w = prefill("uint8", "int8", elements)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated; it is the rival here
        torch.backends.quantized.engine = "onednn"
        quantized = torch.quantize_per_tensor(x, 0.02, 128, torch.quint8)
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(w, 1.0, 0, torch.qint8), None)
    return {
        "pyquant": chain.run,
        "aten float32": lambda: torch.nn.functional.linear(x, w),
        "onednn int8": lambda: torch.ops.quantized.linear(quantized, packed, 20.0, 128),
    }


@rivals("pyquant", "aten float32")
def bench_prefill_w4_int16(elements: int) -> Rivals:
    chain, x, w = prefill("int16", "int4", elements)
    return {"pyquant": chain.run, "aten float32": lambda: torch.nn.functional.linear(x, w)}
