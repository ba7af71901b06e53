# SPDX-License-Identifier: Apache-2.0
"""pyquant's own runner (csrc/run): whole files, or one operator at a time, in integers.

It owns torch tensors in and out: a quantized tensor's value is the float32 that its integer stands for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyquant import circle, ops
from pyquant.errors import InputError
from pyquant.verify.runtimes._inputs import Array, Inputs, Program, ordered
from pyquant.verify.runtimes.constants import value_of

__all__ = ["Runtime", "run"]

_PACKED = ("int4", "uint4")
#: Dtypes whose arrays, as the runner gives them, are not the numbers that they stand for (or not in float32).
_STORED = (*_PACKED, "bfloat16", "float16")


def run(program: Program, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
    """Outputs by name (with `trace`: every tensor by name) of a CircleProgram, a path, or a file's bytes."""
    return Runtime(program).run(inputs, trace=trace)


class Runtime:
    """One file, mapped and planned once. Float tensors in and out; a quantized tensor's value is on its grid.

    workspace: threads and memory that graphs share. signature: the graph of that name, in a file of several. Raises
    CircleError for a file with faults, and when it first runs for a combination of dtypes that the runner does not
    have.
    """

    def __init__(self, program: Program, workspace: circle.Workspace | None = None, signature: str = "") -> None:
        source = program if isinstance(program, bytes | str | os.PathLike) else program.to_bytes()
        self._runner = circle.Runner(source, workspace=workspace, signature=signature)
        graph = self._runner.graph_of(circle.read(source if isinstance(source, bytes) else Path(source)))
        # lists of their own: the graph makes a new one at each access
        self._tensors, self._operators = list(graph.tensors), list(graph.operators)
        self._outputs = [self._tensors[t] for t in graph.outputs]
        self._alone: dict[int, circle.Runner] = {}
        self.input_names = [port.name for port in self._runner.inputs]
        self.input_shapes = [port.shape for port in self._runner.inputs]
        self.output_names = [port.name for port in self._runner.outputs]
        self.tensor_names = [tensor.name for tensor in self._tensors]

    def run(self, inputs: Inputs, trace: bool = False) -> dict[str, torch.Tensor]:
        """Run the graph. `inputs` are in order, or by name."""
        given = [
            _given(value, port.dtype, port.quantized)
            for value, port in zip(ordered(self.input_names, inputs), self._runner.inputs, strict=True)
        ]
        if not trace:
            result = self._runner.run(given, floats=True)
            numbers = self._values(self._runner, self._outputs, result)
            return dict(zip(result, map(torch.from_numpy, numbers), strict=True))
        seen: dict[str, torch.Tensor] = {}

        def keep(operator: int, index: int, shape: tuple[int, ...], data: bytes) -> None:
            if operator >= 0 or not self._tensors[index].is_constant:
                seen[self.tensor_names[index]] = torch.from_numpy(value_of(self._tensors[index], data, shape))

        outputs = self._runner.trace(given, keep)
        tensors = {port.name: tensor for port, tensor in zip(self._runner.outputs, self._outputs, strict=True)}
        values = {name: value_of(tensors[name], array.tobytes(), array.shape) for name, array in outputs.items()}
        return seen | {name: torch.from_numpy(value) for name, value in values.items()}

    def constants(self) -> dict[str, Array]:
        """Every constant by name, as real numbers (quantized ones dequantized)."""
        return {
            tensor.name: value_of(tensor, tensor.data or b"", tensor.shape)
            for tensor in self._tensors
            if tensor.is_constant
        }

    def run_operator(self, index: int, inputs: Sequence[Array | None]) -> list[Array]:
        """One operator on given values; those of constants are the file's own."""
        operator = self._operators[index]
        runner = self._alone.get(index)
        if runner is None:
            runner = self._alone[index] = self._runner.operation(index)
        values: dict[int, Array] = {}
        for tensor, value in zip(operator.inputs, inputs, strict=True):
            if tensor >= 0 and value is not None and not self._tensors[tensor].is_constant:
                values.setdefault(tensor, value)
        given = [
            _packed(value, self._tensors[tensor])
            if port.dtype in _PACKED
            else _given(value, port.dtype, port.quantized)
            for (tensor, value), port in zip(values.items(), runner.inputs, strict=True)
        ]
        tensors = [self._tensors[t] for t in operator.outputs]
        return self._values(runner, tensors, runner.run(given, floats=True))

    @staticmethod
    def _values(runner: circle.Runner, tensors: Sequence[circle.Tensor], made: Mapping[str, Array]) -> list[Array]:
        """Outputs as real numbers; the runner leaves 4-bit integers packed, and 16-bit floats as they are."""
        return [
            value_of(tensor, value.tobytes(), tuple(tensor.shape) if port.dtype in _PACKED else value.shape)
            if port.dtype in _STORED
            else value
            for port, tensor, value in zip(runner.outputs, tensors, made.values(), strict=True)
        ]


def _packed(value: Array, tensor: circle.Tensor) -> Array:
    """Real numbers of a grid of 4 bits as the packed integers of a file."""
    scale, zero = np.asarray(tensor.scale, np.float32), np.asarray(tensor.zero_point, np.int64)
    if scale.size > 1:
        sizes = [1] * len(tensor.shape)
        sizes[tensor.axis] = scale.size
        scale, zero = scale.reshape(sizes), zero.reshape(sizes)
    steps = np.asarray(value / scale, np.float32)
    integers = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5)) + zero
    lowest, highest = (-8, 7) if tensor.dtype == "int4" else (0, 15)
    whole = torch.from_numpy(np.clip(integers, lowest, highest).astype(np.int8 if lowest else np.uint8))
    return np.asarray(ops.pack_int4(whole).numpy())


def _given(value: Any, dtype: str, quantized: bool) -> Array:
    """An array that the runner takes: of the tensor's dtype, or float32 for a quantized tensor."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        value = (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
    array = np.asarray(value)
    if quantized:
        return np.asarray(array, np.float32)
    if dtype == "bfloat16":
        return np.asarray(torch.from_numpy(np.array(array, np.float32)).bfloat16().view(torch.uint16).numpy())
    wanted = np.dtype(dtype)
    if array.dtype.kind != wanted.kind and not (array.dtype.kind in "iu" and wanted.kind in "iu"):
        raise InputError(f"an input is {array.dtype}, expected {dtype}")
    return np.asarray(array, wanted)
