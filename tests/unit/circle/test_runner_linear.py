# SPDX-License-Identifier: Apache-2.0
"""Operators with weights in the runner, judged by TICO's runtime (float32 simulation: one step) and by ATen in float64
on the dequantized operands (rounded once: the same integers)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pyquant.circle
from pyquant import ops
from pyquant.verify.runtimes import onert, tico
from tests.golden.build import PlanBuilder, pack4

LIMITS = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
PAIRS = [
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("uint8", "uint4"),
    ("int16", "int4"),
    ("int16", "int8"),
    ("int16", "int16"),
]


class Case:
    """One operator with random operands; `values` are the real numbers that its tensors stand for."""

    def __init__(self, seed: int, x_dtype: str, w_dtype: str) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = PlanBuilder("linear", "one operator with weights")
        self.dtype, self.w_dtype = x_dtype, w_dtype
        self.values: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, np.ndarray] = {}

    def tensor(self, name: str, dtype: str, shape: list[int], axis: int | None = None, constant: bool = True) -> None:
        low, high = LIMITS[dtype]
        q = self.random.integers(low, high, shape, endpoint=True)
        channels = shape[axis] if axis is not None else 1
        scale = self.random.uniform(0.001, 0.02, channels).astype(np.float32)
        zero = self.random.integers(low, high, channels, endpoint=True) if dtype != "int16" else np.zeros(channels, int)
        data = None
        if constant:
            data = pack4(q) if dtype.endswith("int4") else q.astype(dtype)
        else:
            self.inputs[name] = q.astype(dtype)
        qparams = {"axis": axis} if axis is not None else {}
        self.builder.tensor(name, dtype, shape, scale=scale.tolist(), zero_point=zero.tolist(), data=data, **qparams)
        along = [-1 if d == axis else 1 for d in range(len(shape))]
        real = (q - zero.reshape(along)) * scale.astype(np.float64).reshape(along)
        self.values[name] = torch.from_numpy(real)

    def bias(self, count: int) -> None:
        q = self.random.integers(-3000, 3000, count)
        scale = np.float32(0.0003)
        dtype = "int64" if self.dtype == "int16" else "int32"
        self.builder.tensor("b", dtype, [count], scale=float(scale), zero_point=0, data=q.astype(dtype))
        self.values["b"] = torch.from_numpy(q * np.float64(scale))

    def check(self, op: str, operands: list[str | None], real: torch.Tensor, folder: Path, **options: object) -> None:
        low, high = LIMITS[self.dtype]
        scale = np.float32(2.1 * float(real.abs().max()) / (high - low) + 1e-6)
        zero = 0 if self.dtype == "int16" else (low + high) // 2
        self.builder.tensor("y", self.dtype, list(real.shape), scale=float(scale), zero_point=zero)
        self.builder.op(op, operands, ["y"], **options)
        self.builder.graph(list(self.inputs), ["y"])
        path = folder / "x.circle"
        pyquant.circle.write(self.builder.text(), self.builder.constants, path)
        got = {n: pyquant.circle.Runner(path, threads=n).run(self.inputs)["y"].astype(np.int64) for n in (1, 2)}
        steps = real.numpy() / np.float64(scale)
        expected = np.clip(np.copysign(np.floor(np.abs(steps) + 0.5), steps) + zero, low, high)
        decided = np.abs(np.abs(steps) % 1 - 0.5) > 1e-6
        assert decided.mean() > 0.9
        np.testing.assert_array_equal(got[1][decided], expected[decided])
        np.testing.assert_array_equal(got[1], got[2])
        floats = {name: self.values[name].float() for name in self.inputs}
        simulated = tico.run(path, floats)["y"].numpy() / scale + zero
        assert np.abs(np.round(simulated) - got[1]).max() <= 1
        assert (np.round(simulated) == got[1]).mean() >= (0.999 if self.dtype != "int16" else 0.9)


@pytest.mark.parametrize(("x", "w"), PAIRS)
@pytest.mark.parametrize("rows", [1, 70])
def test_fully_connected(x: str, w: str, rows: int, tmp_path: Path) -> None:
    case = Case(rows, x, w)
    case.tensor("x", x, [1, rows, 130], constant=False)
    case.tensor("w", w, [53, 130], axis=0)
    case.bias(53)
    real = torch.nn.functional.linear(case.values["x"], case.values["w"], case.values["b"])
    case.check("FULLY_CONNECTED", ["x", "w", "b"], real, tmp_path, keep_num_dims=True)


@pytest.mark.parametrize(("x", "w"), [("uint8", "uint8"), ("int16", "int16"), ("int16", "int8")])
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False)])
def test_batch_matmul(x: str, w: str, turned: tuple[bool, bool], tmp_path: Path) -> None:
    case = Case(3, x, w)
    case.tensor("x", x, [2, 3, 40, 9] if turned[0] else [2, 3, 9, 40], constant=False)
    case.tensor("w", w, [1, 3, 31, 40] if turned[1] else [1, 3, 40, 31], constant=False)
    a, b = case.values["x"], case.values["w"]
    real = (a.mT if turned[0] else a) @ (b.mT if turned[1] else b)
    case.check("BATCH_MATMUL", ["x", "w"], real, tmp_path, adjoint_lhs=turned[0], adjoint_rhs=turned[1])


@pytest.mark.parametrize(("x", "w"), [("uint8", "uint8"), ("int16", "int8")])
@pytest.mark.parametrize("padding", [None, 1])
def test_conv_2d(x: str, w: str, padding: int | None, tmp_path: Path) -> None:
    case = Case(4, x, w)
    case.tensor("x", x, [2, 12, 10, 3], constant=False)
    case.tensor("w", w, [26, 3, 3, 3], axis=0)
    case.bias(26)
    nchw = case.values["x"].permute(0, 3, 1, 2)
    filters = case.values["w"].permute(0, 3, 1, 2)
    dilation = 1 if padding else 2
    real = torch.nn.functional.conv2d(nchw, filters, case.values["b"], padding=padding or 0, dilation=dilation)
    options: dict[str, object] = {"dilation_h_factor": dilation, "dilation_w_factor": dilation}
    options |= {"padding": "SAME" if padding else "VALID", "stride_h": 1, "stride_w": 1}
    case.check("CONV_2D", ["x", "w", "b"], real.permute(0, 2, 3, 1), tmp_path, **options)


@pytest.mark.parametrize(("x", "w"), [("uint8", "uint8"), ("int16", "int8")])
def test_depthwise_conv_2d(x: str, w: str, tmp_path: Path) -> None:
    case = Case(5, x, w)
    case.tensor("x", x, [2, 12, 10, 30], constant=False)
    case.tensor("w", w, [1, 3, 3, 30], axis=3)
    case.bias(30)
    nchw = case.values["x"].permute(0, 3, 1, 2)
    filters = case.values["w"].permute(3, 0, 1, 2)
    real = torch.nn.functional.conv2d(nchw, filters, case.values["b"], stride=2, groups=30)
    options = {"padding": "VALID", "stride_h": 2, "stride_w": 2, "depth_multiplier": 1}
    case.check("DEPTHWISE_CONV_2D", ["x", "w", "b"], real.permute(0, 2, 3, 1), tmp_path, **options)


@pytest.mark.parametrize("weight", ["float32", "float16", "ggml_q4_0", "ggml_q8_0", "int8"])
@pytest.mark.parametrize("rows", [1, 9])
def test_fully_connected_in_float(weight: str, rows: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(rows)
    data = "float16" if weight == "float16" else "float32"
    x = torch.randn(rows, 320, generator=generator).to(getattr(torch, data))
    w = torch.randn(50, 320, generator=generator)
    bias = torch.randn(50, generator=generator).to(x.dtype)
    stored: object = w.to(x.dtype).numpy()
    qparams: dict[str, object] = {}
    if weight.startswith("ggml"):
        bits = 4 if weight == "ggml_q4_0" else 8
        stored = ops.quantize_blocks(w, bits)
        w = ops.dequantize_blocks(stored, bits)
    elif weight == "int8":
        stored = (w * 30).round().clamp(-128, 127).to(torch.int8)
        qparams = {"scale": 0.03125, "zero_point": 3}
        w = (stored.float() - 3) * 0.03125
    builder = PlanBuilder("float", "a linear layer in float")
    builder.tensor("x", data, [rows, 320])
    builder.tensor("w", weight, [50, 320], data=stored, **qparams)
    builder.tensor("b", data, [50], data=bias.numpy())
    builder.tensor("y", data, [rows, 50])
    builder.op("FULLY_CONNECTED", ["x", "w", "b"], ["y"], keep_num_dims=True, fused_activation_function="RELU")
    path = tmp_path / "x.circle"
    pyquant.circle.write(builder.graph(["x"], ["y"]).text(), builder.constants, path)
    got = pyquant.circle.Runner(path, threads=1).run({"x": x.numpy()})["y"]
    expected = torch.nn.functional.linear(x.double(), w.to(x.dtype).double(), bias.double()).relu()
    tolerance = 2e-3 if data == "float16" else 2e-5
    np.testing.assert_allclose(got, expected.numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(got, pyquant.circle.Runner(path, threads=2).run({"x": x.numpy()})["y"])
    if weight == "float32":
        np.testing.assert_allclose(got, onert.run(path, [x])["y"].numpy(), rtol=1e-4, atol=1e-4)
