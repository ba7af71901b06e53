# SPDX-License-Identifier: Apache-2.0
"""The table of Circle operators, csrc/circle/ops.def, as Python data: the one source of arity, roles and options.

The lowering reads it; checking a model is native.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pyquant.circle._native import native


@dataclass(frozen=True)
class Option:
    """One field of an operator's options; `choices` are the spellings of an enum field."""

    name: str
    type: str
    default: bool | int | float | str | tuple[int, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Operand:
    """One input or output. Roles: x data, w weight or table, b bias, i integers, c bool, a any dtype."""

    role: Literal["x", "w", "b", "i", "c", "a"]
    may_be_none: bool  # present, but may be -1
    may_be_absent: bool
    repeats: bool  # one or more


@dataclass(frozen=True)
class OperatorInfo:
    """One row of ops.def."""

    name: str
    code: int
    kind: Literal["arith", "move", "weighted", "compare", "index", "convert"]
    options_table: str
    options: tuple[Option, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    dtypes: tuple[str, ...]  # families of x: float, quantized, index, bool
    onert: tuple[str, ...]  # dtypes of x that onert 0.1.0 computes correctly

    @property
    def value_preserving(self) -> bool:
        """Whether elements are only moved, so that the output keeps the input's qparams."""
        return self.kind == "move"

    @property
    def min_inputs(self) -> int:
        return sum(not operand.may_be_absent for operand in self.inputs)

    @property
    def max_inputs(self) -> int | None:
        """None: no limit."""
        return None if self.inputs[-1].repeats else len(self.inputs)

    def input(self, index: int) -> Operand:
        """The operand of input `index`; the last operand repeats."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def option(self, name: str) -> Option:
        for option in self.options:
            if option.name == name:
                return option
        raise KeyError(f"{self.name} has no option {name!r}; it has {[option.name for option in self.options]}")


def _operand(row: dict[str, bool | str]) -> Operand:
    return Operand(**row)  # type: ignore[arg-type]


def _option(row: dict[str, object]) -> Option:
    default = tuple(row["default"]) if isinstance(row["default"], list) else row["default"]
    return Option(row["name"], row["type"], default, tuple(row["choices"]))  # type: ignore[arg-type]


@functools.cache
def operators() -> Mapping[str, OperatorInfo]:
    """name -> row of ops.def, in its order."""
    table = {}
    for row in json.loads(native.operators_json()):
        row["options"] = tuple(_option(option) for option in row["options"])
        row["inputs"] = tuple(_operand(operand) for operand in row["inputs"])
        row["outputs"] = tuple(_operand(operand) for operand in row["outputs"])
        row["dtypes"], row["onert"] = tuple(row["dtypes"]), tuple(row["onert"])
        table[row["name"]] = OperatorInfo(**row)
    return MappingProxyType(table)
