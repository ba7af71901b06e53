# SPDX-License-Identifier: Apache-2.0
"""Runner: computes a Circle file in integers, natively (csrc/run). Arrays are NumPy's, or anything with a buffer.

It owns names, dtypes and shapes of what goes in and out. What a file means is csrc/circle/ops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import files
from pyquant.circle._native import native
from pyquant.circle.types import Graph, Model
from pyquant.errors import CircleError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OperatorTime", "Port", "Runner", "Workspace"]

#: Bytes that one tensor, the arena and the scratch memory of a graph may have.
MEMORY_LIMIT = 16 << 30

#: Dtypes of Circle whose arrays have another dtype in NumPy: bfloat16 as its bits, 4-bit integers packed.
_STORED = {"bfloat16": "uint16", "int4": "uint8", "uint4": "uint8"}


class Workspace:
    """Threads and memory of graphs that run one after another. Graphs that run at the same time need one each.

    threads: 0 for as many as this process may use.
    """

    def __init__(self, threads: int = 0) -> None:
        if threads < 0:
            raise InputError(f"threads is {threads}, expected 0 (all) or more")
        self._native = native.Workspace(threads)

    @property
    def threads(self) -> int:
        """How many there are."""
        count: int = self._native.threads
        return count


@dataclass(frozen=True)
class Port:
    """An input or output: `shape` has -1 where it is open; `quantized`: its integers stand for real numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quantized: bool


@dataclass(frozen=True)
class OperatorTime:
    """One operator over the runs of a profile. bytes: of its operands, and multiply_adds, are those of one call."""

    operator: int
    name: str
    calls: int
    nanoseconds: int
    bytes: int
    multiply_adds: int


class Runner:
    """The graph of a file: `Runner("x.circle").run({"x": array}) -> {"y": array}`.

    source: the bytes of a file, or a path. A path is mapped and its constants are not copied: replace a file that is in
    use, and do not write into it (reading past the end of a file that was cut ends the process with SIGBUS).
    signature: the graph of that name, in a file of several; without one the first. workspace: threads and memory,
    shared with other runners. memory_limit: bytes that one tensor, and all of them together, may take. Raises
    CircleError for a file with faults; one that the runner has no kernel for raises it when it is first run.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        signature: str = "",
        threads: int = 0,
        workspace: Workspace | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        if isinstance(source, bytes):
            program = native.load_program_bytes(source, "bytes", signature)
        else:
            if why := files.absent(Path(source)):
                raise CircleError(f"E_NOT_CIRCLE: {os.fspath(source)}: {why}")
            program = native.load_program(os.fspath(source), signature)
        self._set(program, Workspace(threads) if workspace is None else workspace, memory_limit)

    def _set(self, program: native.Program, workspace: Workspace, memory_limit: int) -> None:
        self._program, self.workspace, self.memory_limit = program, workspace, memory_limit
        self._runner = native.Runner(program, workspace._native, memory_limit)
        self._inputs, self._outputs = program.inputs, program.outputs
        self.inputs, self.outputs = tuple(map(_port, self._inputs)), tuple(map(_port, self._outputs))

    def graph_of(self, model: Model) -> Graph:
        """The graph that this runs, of the file as it was read."""
        return model.graphs[self._program.graph]

    def operation(self, index: int) -> Runner:
        """One operator alone: its inputs that are no constants, each once. Raises CircleError where there is none."""
        alone = object.__new__(Runner)
        alone._set(self._program.operation(index), self.workspace, self.memory_limit)
        return alone

    def run(self, inputs: Mapping[str, Any] | Sequence[Any], *, floats: bool = False) -> dict[str, NDArray[Any]]:
        """Outputs by name, in the tensors' own dtypes; with `floats`, quantized ones as the float32 they stand for.

        inputs: by name or in order, arrays (or CPU tensors) of the tensors' own dtypes, used in place where they are
        contiguous; for a quantized tensor also float32, which is rounded to its grid. bfloat16 is uint16 (its bits),
        4-bit tensors are packed uint8 of one dimension. Threads may share a runner; the GIL is free meanwhile. Raises
        InputError for other names, dtypes and shapes, CircleError for values that an operator cannot take.
        """
        return self._run(inputs, floats, None)

    def trace(
        self, inputs: Mapping[str, Any] | Sequence[Any], seen: Callable[[int, int, tuple[int, ...], bytes], None]
    ) -> dict[str, NDArray[Any]]:
        """The same, and `seen(operator, tensor, shape, bytes)` for every tensor: inputs and constants first, of
        operator -1. Tensors that only rename another (RESHAPE) may be left out. `seen` may not run graphs of the same
        workspace."""
        return self._run(inputs, False, seen)

    def start_profile(self) -> None:
        """Measure each operator of the runs from now on."""
        self._runner.start_profile()

    def profile(self) -> tuple[OperatorTime, ...]:
        """What was measured, in the order of the graph."""
        return tuple(OperatorTime(**row) for row in self._runner.profile())

    def _run(self, inputs: Mapping[str, Any] | Sequence[Any], floats: bool, seen: Any) -> dict[str, NDArray[Any]]:
        import numpy as np

        given = [_array(value, port) for value, port in zip(_ordered(self.inputs, inputs), self.inputs, strict=True)]
        shapes = [_shape(array, port) for array, port in zip(given, self.inputs, strict=True)]
        out_shapes = self._runner.prepare(shapes)
        for i, (array, port) in enumerate(zip(given, self.inputs, strict=True)):
            if port.quantized and array.dtype == np.float32:
                stored = np.empty(shapes[i], _stored(port))
                self._inputs[i].to_integers(array, stored, shapes[i])
                given[i] = stored
        results = [_empty(port, shape) for port, shape in zip(self.outputs, out_shapes, strict=True)]
        self._runner.run(shapes, given, results, seen)
        if floats:
            for k, port in enumerate(self.outputs):
                if port.quantized:
                    values = np.empty(out_shapes[k], np.float32)
                    self._outputs[k].to_floats(results[k], values, out_shapes[k])
                    results[k] = values
        return dict(zip((port.name for port in self.outputs), results, strict=True))


def _port(port: Any) -> Port:
    return Port(port.name, port.dtype, port.shape, port.has_numbers)


def _stored(port: Port) -> str:
    return _STORED.get(port.dtype, port.dtype)


def _ordered(ports: Sequence[Port], inputs: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    names = [port.name for port in ports]
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise InputError(f"the graph's inputs are {names}, got {list(inputs)}")
        return [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise InputError(f"the graph has {len(names)} inputs {names}, got {len(inputs)} values")
    return list(inputs)


def _array(value: Any, port: Port) -> NDArray[Any]:
    import numpy as np

    array = np.asarray(value)
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = array.copy()
    wanted = [_stored(port), *(["float32"] if port.quantized else [])]
    if str(array.dtype) not in wanted:
        raise InputError(f"input '{port.name}' is {array.dtype}, expected {' or '.join(wanted)}")
    return array


def _shape(array: NDArray[Any], port: Port) -> tuple[int, ...]:
    if port.dtype in ("int4", "uint4") and str(array.dtype) == "uint8":
        return port.shape  # packed: its own shape says nothing
    if len(array.shape) != len(port.shape) or any(
        size not in (-1, seen) for size, seen in zip(port.shape, array.shape, strict=True)
    ):
        sizes = ["any" if size == -1 else size for size in port.shape]
        raise InputError(f"input '{port.name}' is {list(array.shape)}, expected {sizes}")
    return tuple(array.shape)


def _empty(port: Port, shape: tuple[int, ...]) -> NDArray[Any]:
    import numpy as np

    if port.dtype in ("int4", "uint4"):
        count = int(np.prod(shape, dtype=np.int64))
        return np.empty((count + 1) // 2, np.uint8)
    return np.empty(shape, _stored(port))
