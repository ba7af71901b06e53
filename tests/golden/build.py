# SPDX-License-Identifier: Apache-2.0
"""Builds small plans by hand, for golden files and tests: tensors and operators by name, constants as numpy or torch.

It neither writes nor checks; names become indices in the order in which they appear.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch


class PlanBuilder:
    """`tensor` adds inputs, results and constants, `op` operators; `text()` is the plan, `constants` its tensors."""

    def __init__(self, name: str, description: str = "") -> None:
        self.plan: dict[str, Any] = {
            "format": "pyquant-plan",
            "version": 1,
            "name": name,
            "description": description,
            "tensors": [],
            "operators": [],
        }
        self.constants: list[torch.Tensor] = []
        self.index: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: list[int],
        *,
        scale: list[float] | float | None = None,
        zero_point: list[int] | int = 0,
        axis: int = 0,
        data: Any = None,
        signature: list[int] | None = None,
        shares: str | None = None,
    ) -> str:
        entry: dict[str, Any] = {"name": name, "dtype": dtype, "shape": shape}
        if signature is not None:
            entry["shape_signature"] = signature
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            zeros = np.broadcast_to(np.asarray(zero_point), scales.shape)
            entry["quant"] = {
                "scale": [float(f"{s:.9g}") for s in scales],
                "zero_point": [int(z) for z in zeros],
                "axis": axis,
            }
        if shares is not None:
            entry["constant"] = self.plan["tensors"][self.index[shares]]["constant"]
        elif data is not None:
            entry["constant"] = len(self.constants)
            self.constants.append(
                data if isinstance(data, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(data))
            )
        self.index[name] = len(self.plan["tensors"])
        self.plan["tensors"].append(entry)
        return name

    def op(self, op: str, inputs: list[str | None], outputs: list[str], **options: Any) -> None:
        entry: dict[str, Any] = {
            "op": op,
            "inputs": [-1 if name is None else self.index[name] for name in inputs],
            "outputs": [self.index[name] for name in outputs],
        }
        if options:
            entry["options"] = options
        self.plan["operators"].append(entry)

    def graph(self, inputs: list[str], outputs: list[str]) -> PlanBuilder:
        self.plan["inputs"] = [self.index[name] for name in inputs]
        self.plan["outputs"] = [self.index[name] for name in outputs]
        self.plan["signature"] = {
            "key": "serving_default",
            "inputs": {name: self.index[name] for name in inputs},
            "outputs": {name: self.index[name] for name in outputs},
        }
        return self

    def text(self) -> str:
        return json.dumps(self.plan)


def pack4(values: Any) -> np.ndarray[Any, Any]:
    """4-bit integers, two in a byte, the low nibble first."""
    flat = np.asarray(values).reshape(-1).astype(np.int64) & 15
    flat = np.concatenate([flat, np.zeros(len(flat) % 2, np.int64)])
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
