# SPDX-License-Identifier: Apache-2.0
"""Files run in TICO's reference runtime and give what numpy gives: float (NATIVE) and quantized (FAKE_QUANTIZE)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tico.circle.runtime import CircleReferenceRuntime, ExecutionMode

import pyquant.circle
from tests.golden.make import float_mlp, int16_uint4_norm, uint8_linear


def run(path: Path, x: np.ndarray, mode: ExecutionMode) -> dict[str, np.ndarray]:
    runtime = CircleReferenceRuntime(path.read_bytes())
    result = runtime.run([x], mode=mode, trace=True)
    return {tensor.name: result.tensor_values[tensor.index] for tensor in runtime.program.tensors}


@pytest.fixture
def write(tmp_path: Path):
    def write(builder) -> Path:
        path = tmp_path / "x.circle"
        pyquant.circle.write(builder.text(), builder.constants, path)
        return path

    return write


def half_away(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, np.floor(x + 0.5), np.ceil(x - 0.5))


def on_grid(x: np.ndarray, tensor: pyquant.circle.Tensor) -> np.ndarray:
    low, high = {"uint8": (0, 255), "int16": (-32768, 32767)}[tensor.dtype]
    scale, zero = np.float32(tensor.scale[0]), np.float32(tensor.zero_point[0])
    q = np.clip(half_away(x.astype(np.float32) / scale) + zero, low, high)
    return ((q - zero) * scale).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_float_file_runs_natively(write) -> None:
    builder = float_mlp()
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    got = run(write(builder), x, ExecutionMode.NATIVE)
    up, bias, down = (tensor.numpy() for tensor in builder.constants)
    h = x @ up.T + bias
    act = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(got["h"], h, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["act"], act, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["probabilities"], softmax(x + act @ down.T), rtol=1e-5, atol=1e-6)


def test_uint8_file_runs_fake_quantized(write) -> None:
    path = write(uint8_linear())
    x = np.linspace(-1, 8, 8, dtype=np.float32).reshape(2, 4)
    got = run(path, x, ExecutionMode.FAKE_QUANTIZE)
    t = {tensor.name: tensor for tensor in pyquant.circle.read(path).tensors}
    weight = np.frombuffer(t["w"].data, np.uint8).reshape(3, 4).astype(np.float32)
    weight = (weight - np.float32(t["w"].zero_point)[:, None]) * np.float32(t["w"].scale)[:, None]
    bias = np.frombuffer(t["b"].data, np.int32) * np.float32(t["b"].scale)
    y = on_grid(on_grid(x, t["x"]) @ weight.T + bias, t["y"])
    np.testing.assert_allclose(got["y"], y, atol=1e-6)
    np.testing.assert_array_equal(got["t"], got["y"].T)
    np.testing.assert_allclose(got["p"], on_grid(softmax(y.T), t["p"]), atol=1e-6)


def test_int16_file_with_packed_weights_runs_fake_quantized(write) -> None:
    path = write(int16_uint4_norm())
    x = np.linspace(-2, 3, 10, dtype=np.float32).reshape(1, 2, 5)
    got = run(path, x, ExecutionMode.FAKE_QUANTIZE)
    t = {tensor.name: tensor for tensor in pyquant.circle.read(path).tensors}
    packed = np.frombuffer(t["w"].data, np.uint8)
    weight = np.stack([packed & 15, packed >> 4], -1).reshape(-1)[:15].reshape(3, 5).astype(np.float32)
    weight = (weight - np.float32(t["w"].zero_point)[:, None]) * np.float32(t["w"].scale)[:, None]
    gamma = np.frombuffer(t["gamma"].data, np.int16) * np.float32(t["gamma"].scale[0])
    bias = np.frombuffer(t["b"].data, np.int64) * np.float32(t["b"].scale)
    x = on_grid(x, t["x"])
    n = on_grid(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gamma, t["n"])
    np.testing.assert_allclose(got["n"], n, atol=1.01 * t["n"].scale[0])
    expected = on_grid(got["n"] @ weight.T + bias, t["y"])
    np.testing.assert_allclose(got["y"], expected, atol=1.01 * t["y"].scale[0])
    assert (got["y"] == expected).mean() >= 0.5
