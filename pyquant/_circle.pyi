# SPDX-License-Identifier: Apache-2.0
"""
Circle files: the native reader, checker and inspector. Use pyquant.circle.
"""

from __future__ import annotations

import collections.abc
import typing

import typing_extensions

__all__: list[str] = [
    "Data",
    "Graph",
    "Model",
    "Operator",
    "Port",
    "Program",
    "Runner",
    "Tensor",
    "Workspace",
    "check_plan",
    "codes",
    "join_files",
    "load_program",
    "load_program_bytes",
    "operators_json",
    "read",
    "read_bytes",
    "write_plan",
]

class Data:
    """
    Read-only bytes of a constant.
    """

class Tensor:
    """
    A tensor of a Circle model.
    """
    def __repr__(self) -> str: ...
    @property
    def axis(self) -> int: ...
    @property
    def buffer(self) -> int: ...
    @property
    def data(self) -> memoryview | None:
        """
        The constant's bytes, read-only and not copied; None when the tensor is not a constant.
        """
    @property
    def dtype(self) -> str: ...
    @property
    def is_constant(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def quantized(self) -> bool:
        """
        Whether there are qparams.
        """
    @property
    def scale(self) -> tuple[float, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def shape_signature(self) -> tuple[int, ...]:
        """
        Like shape, -1 where dynamic; empty when nothing is.
        """
    @property
    def zero_point(self) -> tuple[int, ...]: ...

class Operator:
    """
    An operator of a Circle model.
    """
    def __repr__(self) -> str: ...
    @property
    def code(self) -> int: ...
    @property
    def inputs(self) -> tuple[int, ...]:
        """
        Tensor indices; -1: none.
        """
    @property
    def name(self) -> str: ...
    @property
    def options(self) -> dict[str, typing.Any]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...

class Graph:
    """
    A subgraph of a Circle model.
    """
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def operators(self) -> list[Operator]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...
    @property
    def tensors(self) -> list[Tensor]: ...

class Model:
    """
    A Circle file as it was read.
    """
    def check(self, target: str) -> list[tuple[str, str, str]]:
        """
        (code, message, where) of each fault.
        """
    def diff(self, other: Model) -> list[str]:
        """
        One line for each difference.
        """
    def inspect(self, title: str, as_json: bool) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def external(self) -> bool:
        """
        Whether constants stand outside the flatbuffer.
        """
    @property
    def file_size(self) -> int: ...
    @property
    def graphs(self) -> list[Graph]:
        """
        The subgraphs; name, tensors, operators, inputs and outputs of the model are those of the first.
        """
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def metadata(self) -> dict[str, bytes]: ...
    @property
    def name(self) -> str: ...
    @property
    def operators(self) -> list[Operator]: ...
    @property
    def outputs(self) -> tuple[int, ...]: ...
    @property
    def signatures(self) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
        """
        key -> (input name -> tensor, output name -> tensor)
        """
    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def version(self) -> int: ...

class Port:
    """
    An input or output of a graph.
    """
    def to_floats(
        self, integers: typing.Any, floats: typing.Any, shape: tuple[typing.SupportsInt | typing.SupportsIndex, ...]
    ) -> None: ...
    def to_integers(
        self, floats: typing.Any, integers: typing.Any, shape: tuple[typing.SupportsInt | typing.SupportsIndex, ...]
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def has_numbers(self) -> bool:
        """
        Whether its integers stand for real numbers (int8, uint8, int16 with qparams).
        """
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """
        -1 where it is open.
        """
    @property
    def tensor(self) -> int: ...

class Workspace:
    """
    Threads and memory that runners share.
    """
    def __init__(self, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> None: ...
    @property
    def threads(self) -> int: ...

class Program:
    """
    A file that can be run.
    """
    def operation(self, operator: typing.SupportsInt | typing.SupportsIndex) -> Program:
        """
        One operator alone.
        """
    @property
    def graph(self) -> int:
        """
        Its number in the file.
        """
    @property
    def inputs(self) -> list[Port]: ...
    @property
    def name(self) -> str: ...
    @property
    def outputs(self) -> list[Port]: ...

class Runner:
    """
    Runs one graph.
    """
    def __init__(
        self, program: Program, workspace: Workspace, memory_limit: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def prepare(
        self, shapes: collections.abc.Iterable[tuple[typing.SupportsInt | typing.SupportsIndex, ...]]
    ) -> list[tuple[int, ...]]:
        """
        Shapes of the inputs -> shapes of the outputs.
        """
    def profile(self) -> list[dict[str, typing.Any]]: ...
    def run(
        self,
        shapes: collections.abc.Iterable[tuple[typing.SupportsInt | typing.SupportsIndex, ...]],
        inputs: list[typing.Any],
        outputs: list[typing.Any],
        observer: typing.Any = None,
    ) -> None:
        """
        For inputs of these shapes, planned if they were not.
        """
    def start_profile(self) -> None: ...

def check_plan(
    plan: str, sizes: collections.abc.Iterable[typing.SupportsInt | typing.SupportsIndex], target: str
) -> list[tuple[str, str, str]]:
    """
    (code, message, where) of each fault of plan text whose constants have these sizes in bytes.
    """

def codes() -> dict[str, str]:
    """
    Every fault code and what it means.
    """

def join_files(keys: list[str], paths: list[str], path: str) -> int:
    """
    Files of one graph each to one file of several; returns its bytes.
    """

def load_program(path: str, signature: str) -> Program: ...
def load_program_bytes(data: bytes, name: str, signature: str) -> Program: ...
def operators_json() -> str:
    """
    The table ops.def as JSON text.
    """

def read(path: str) -> Model:
    """
    Maps and reads a file.
    """

def read_bytes(data: bytes) -> Model:
    """
    Reads bytes.
    """

def write_plan(
    plan: str,
    sizes: collections.abc.Iterable[typing.SupportsInt | typing.SupportsIndex],
    known: dict[typing.SupportsInt | typing.SupportsIndex, typing_extensions.Buffer],
    give: collections.abc.Callable[[int], collections.abc.Iterable[typing_extensions.Buffer]],
    path: str,
) -> int:
    """
    Checks plan text and writes it; give(k) makes the buffers of constant k when it is written. Returns its bytes.
    """
