# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files: `python -m tests.golden.make`. Each is named by what it shows.

tests/unit/circle/test_circle_golden.py makes them again and compares bytes. A changed golden file is a changed format:
say so in CHANGELOG.md, and keep the old one as `<name>.<release>.circle`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import pyquant.circle
from pyquant._launch import program
from tests.golden.build import PlanBuilder, pack4

HERE = Path(__file__).parent


def _numbers(*shape: int, step: int = 7, modulo: int = 11) -> np.ndarray:
    """Small numbers without a random generator, so that the files never depend on one."""
    return (np.arange(np.prod(shape, dtype=np.int64)) * step % modulo).reshape(shape)


def float_mlp() -> PlanBuilder:
    """Float: FULLY_CONNECTED with and without bias, GELU, ADD, SOFTMAX."""
    b = PlanBuilder("float_mlp", "float FULLY_CONNECTED, GELU, ADD, SOFTMAX")
    b.tensor("x", "float32", [2, 4])
    b.tensor("up", "float32", [6, 4], data=(_numbers(6, 4) / 8 - 0.5).astype(np.float32))
    b.tensor("bias", "float32", [6], data=(_numbers(6) / 16).astype(np.float32))
    b.tensor("down", "float32", [4, 6], data=(_numbers(4, 6) / 8 - 0.5).astype(np.float32))
    for name, shape in {"h": [2, 6], "act": [2, 6], "y": [2, 4], "sum": [2, 4], "probabilities": [2, 4]}.items():
        b.tensor(name, "float32", shape)
    b.op("FULLY_CONNECTED", ["x", "up", "bias"], ["h"], keep_num_dims=True)
    b.op("GELU", ["h"], ["act"], approximate=True)
    b.op("FULLY_CONNECTED", ["act", "down", None], ["y"], keep_num_dims=True)
    b.op("ADD", ["x", "y"], ["sum"])
    b.op("SOFTMAX", ["sum"], ["probabilities"], beta=1.0)
    return b.graph(["x"], ["probabilities"])


def uint8_linear() -> PlanBuilder:
    """uint8 activations, per-channel asymmetric uint8 weights, int32 bias, a move, a fixed softmax."""
    b = PlanBuilder("uint8_linear", "uint8 per-channel FULLY_CONNECTED, int32 bias, TRANSPOSE, SOFTMAX")
    weight_scale = np.array([0.02, 0.03, 0.05], np.float32)
    x_scale = np.float32(0.0625)
    b.tensor("x", "uint8", [2, 4], scale=float(x_scale), zero_point=3)
    b.tensor(
        "w",
        "uint8",
        [3, 4],
        scale=list(weight_scale),
        zero_point=[0, 128, 255],
        data=(_numbers(3, 4) * 23).astype(np.uint8),
    )
    b.tensor(
        "b",
        "int32",
        [3],
        scale=list(x_scale * weight_scale),
        zero_point=[0, 0, 0],
        data=np.array([100, -200, 300], np.int32),
    )
    b.tensor("y", "uint8", [2, 3], scale=0.25, zero_point=128)
    b.tensor("perm", "int32", [2], data=np.array([1, 0], np.int32))
    b.tensor("t", "uint8", [3, 2], scale=0.25, zero_point=128)
    b.tensor("p", "uint8", [3, 2], scale=1 / 255, zero_point=0)
    b.op("FULLY_CONNECTED", ["x", "w", "b"], ["y"], keep_num_dims=True)
    b.op("TRANSPOSE", ["y", "perm"], ["t"])
    b.op("SOFTMAX", ["t"], ["p"], beta=1.0)
    return b.graph(["x"], ["p"])


def int16_uint4_norm() -> PlanBuilder:
    """int16 activations, RMS_NORM (a negative operator code), packed uint4 weights, int64 bias."""
    b = PlanBuilder("int16_uint4_norm", "int16 RMS_NORM, uint4 FULLY_CONNECTED with int64 bias")
    weight_scale = np.array([0.05, 0.1, 0.2], np.float32)
    b.tensor("x", "int16", [1, 2, 5], scale=0.001)
    b.tensor("gamma", "int16", [5], scale=0.0001, data=(_numbers(5) * 1000 + 5000).astype(np.int16))
    b.tensor("n", "int16", [1, 2, 5], scale=0.0002)
    b.tensor(
        "w", "uint4", [3, 5], scale=list(weight_scale), zero_point=[8, 7, 0], data=pack4(_numbers(3, 5, modulo=16))
    )
    b.tensor(
        "b",
        "int64",
        [3],
        scale=list(np.float32(0.0002) * weight_scale),
        zero_point=[0, 0, 0],
        data=np.array([10, -20, 30]),
    )
    b.tensor("y", "int16", [1, 2, 3], scale=0.0005)
    b.op("RMS_NORM", ["x", "gamma"], ["n"], epsilon=1e-6)
    b.op("FULLY_CONNECTED", ["n", "w", "b"], ["y"], keep_num_dims=True)
    return b.graph(["x"], ["y"])


def constants_of_every_type() -> PlanBuilder:
    """A constant of each dtype that plans hold, one of them shared, and a dynamic batch."""
    b = PlanBuilder("constants_of_every_type", "each dtype as a constant of a RESHAPE, a shared one, a dynamic batch")
    data = {
        "float32": torch.tensor([1.5, -2.0, 0.25]),
        "float16": torch.tensor([1.5, -2.0, 0.25], dtype=torch.float16),
        "bfloat16": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
        "int4": pack4([-8, 7, -1]),
        "uint4": pack4([0, 15, 8]),
        "int8": np.array([-128, 0, 127], np.int8),
        "uint8": np.array([0, 128, 255], np.uint8),
        "int16": np.array([-32768, 0, 32767], np.int16),
        "int32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
        "int64": np.array([-(2**63), 0, 2**63 - 1], np.int64),
        "bool": np.array([True, False, True]),
    }
    outputs = []
    for dtype, values in data.items():
        scale = 0.5 if dtype in ("int4", "uint4", "int8", "uint8", "int16") else None
        b.tensor(f"c_{dtype}", dtype, [3], scale=scale, data=values)
        b.tensor(f"y_{dtype}", dtype, [1, 3], scale=scale)
        b.op("RESHAPE", [f"c_{dtype}"], [f"y_{dtype}"], new_shape=[1, 3])
        outputs.append(f"y_{dtype}")
    b.tensor("batch", "float32", [1, 3], signature=[-1, 3])
    b.tensor("twin", "float32", [3], shares="c_float32")
    b.tensor("sum", "float32", [1, 3], signature=[-1, 3])
    b.op("ADD", ["batch", "twin"], ["sum"])
    b.plan["metadata"] = {"pyquant": "golden", "note": "metadata is text: \u00e9 \u20ac"}
    return b.graph(["batch"], [*outputs, "sum"])


GOLDEN: dict[str, Callable[[], PlanBuilder]] = {
    f.__name__: f for f in (float_mlp, uint8_linear, int16_uint4_norm, constants_of_every_type)
}
EXTERNAL = "uint8_linear"


def make(folder: Path) -> list[Path]:
    """Writes every golden file into `folder`; one of them once more with external constants."""
    paths = []
    for name, build in GOLDEN.items():
        plan = build()
        paths.append(folder / f"{name}.circle")
        pyquant.circle.write(plan.text(), plan.constants, paths[-1])
    paths.append(folder / f"{EXTERNAL}.external.circle")
    write_external(GOLDEN[EXTERNAL](), paths[-1])
    return paths


def write_external(plan: PlanBuilder, path: Path) -> None:
    """The layout of files of 2 GiB and more, which the native program writes on demand."""
    text, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    text.write_text(plan.text())
    save_file({str(i): tensor for i, tensor in enumerate(plan.constants)}, weights)
    command = [program(), "write", text, "--weights", weights, "-o", path, "--layout", "external"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    text.unlink()
    weights.unlink()


if __name__ == "__main__":
    for path in make(HERE):
        print(f"{path.relative_to(HERE.parent.parent)}: {path.stat().st_size} bytes")
