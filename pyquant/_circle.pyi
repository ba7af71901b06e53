# SPDX-License-Identifier: Apache-2.0
"""
Circle files: the native reader, checker and inspector. Use pyquant.circle.
"""

from __future__ import annotations

import collections.abc
import typing

__all__: list[str] = [
    "Data",
    "Model",
    "Operator",
    "Tensor",
    "check_plan",
    "codes",
    "operators_json",
    "read",
    "read_bytes",
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
