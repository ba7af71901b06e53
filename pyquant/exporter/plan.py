# SPDX-License-Identifier: Apache-2.0
"""The Circle graph as small frozen values, and the plan text that the native writer reads.

It mirrors csrc/circle/ir.h. Building a graph is tracing.py and lower/, the bytes of its constants are constant.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pyquant.exporter.constant import Constant

#: torch type -> plan type. The 4-bit types have no torch counterpart; their constants are packed uint8.
DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}
FLOATS = frozenset({"float32", "float16", "bfloat16"})


@dataclass(frozen=True)
class Quant:
    """Affine qparams of a tensor: `real = (q - zero_point) * scale`.

    `scale` has float32 values. `qmin`/`qmax` are the ends that the eager model uses; the file has only the
    type's own. One scale is per tensor (`axis` None); more lie along `axis`.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        assert len(self.scale) == len(self.zero_point) >= 1, "one zero point for each scale"
        assert (self.axis is None) == (len(self.scale) == 1) or self.axis is not None, "many scales need an axis"

    @property
    def per_tensor(self) -> bool:
        return self.axis is None

    @property
    def symmetric(self) -> bool:
        """True when -x is on the grid whenever x is."""
        return self.qmin == -self.qmax and not any(self.zero_point)

    def __str__(self) -> str:
        if self.per_tensor:
            return f"{self.dtype} scale {_shortest(self.scale[:1])[0]!r} zero_point {self.zero_point[0]}"
        return f"{self.dtype} per-channel(axis={self.axis}), {len(self.scale)} scales"


@dataclass(frozen=True)
class Location:
    """The place in the user's model that something came from, for messages."""

    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        module = f"module '{self.module}'" if self.module else "the root module"
        return f"{module}, {self.line}" if self.line else module


@dataclass(frozen=True)
class Tensor:
    """One Circle tensor. `constant` indexes Graph.constants.

    `origin` is the fx node whose value (on this tensor's grid) it has; None for a tensor that lowering added.
    `note` is the reason why a float tensor has no qparams. `signature` is `shape` with -1 along an axis of open
    length, where `shape` has 1; None when every size is fixed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    quant: Quant | None = None
    constant: int | None = None
    origin: str | None = None
    where: Location = field(default_factory=Location)
    note: str = ""
    signature: tuple[int, ...] | None = None

    def replace(self, **changes: Any) -> Tensor:
        return replace(self, **changes)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def describe(self) -> dict[str, Any]:
        """Name, shape, dtype and qparams as plain data, for manifests and messages."""
        out: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        if self.signature is not None:
            out["shape_signature"] = list(self.signature)
        if self.quant is not None:
            out["quant"] = _quant_json(self.quant)
        return out


@dataclass(frozen=True)
class Op:
    """One Circle operator; -1 is an absent optional input. Option names are those of circle.fbs."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    where: Location = field(default_factory=Location)


@dataclass(frozen=True)
class Graph:
    """One subgraph with its constants, in execution order. Passes take one and return another."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: tuple[Constant, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants in the file."""
        return sum(constant.nbytes for constant in self.constants)

    def replace(self, **changes: Any) -> Graph:
        return replace(self, **changes)

    def to_json(self) -> str:
        """The plan text. Same graph, same text; scales are the shortest decimals that read back as the same float32."""
        plan = {
            "format": "pyquant-plan",
            "version": 1,
            "name": self.name,
            "description": f"{self.name}, written by pyquant",
            "metadata": dict(sorted(self.metadata.items())),
            "tensors": [_tensor_json(tensor) for tensor in self.tensors],
            "operators": [
                {"op": op.op, "inputs": list(op.inputs), "outputs": list(op.outputs), "options": dict(op.options)}
                for op in self.operators
            ],
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "signature": {
                "key": "serving_default",
                "inputs": {self.tensors[index].name: index for index in self.inputs},
                "outputs": {self.tensors[index].name: index for index in self.outputs},
            },
        }
        return json.dumps(plan, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.signature is not None:
        out["shape_signature"] = list(tensor.signature)
    if tensor.quant is not None:
        out["quant"] = _quant_json(tensor.quant)
    if tensor.constant is not None:
        out["constant"] = tensor.constant
    return out


def _quant_json(quant: Quant) -> dict[str, Any]:
    out: dict[str, Any] = {"scale": _shortest(quant.scale), "zero_point": list(quant.zero_point)}
    if quant.axis is not None:
        out["axis"] = quant.axis
    return out


def _shortest(values: Sequence[float]) -> list[float]:
    """The doubles whose reprs are the shortest decimals of float32s (0.1 rather than 0.10000000149011612)."""
    array = np.array(values, np.float32)
    assert bool(np.isfinite(array).all()), f"scales are finite, got {values}"
    return array.astype(str).astype(np.float64).tolist()  # type: ignore[no-any-return]
