# SPDX-License-Identifier: Apache-2.0
"""The graph under construction: tensors, operators, constants and their names, appended in execution order.

It imports neither grids nor ATen. What to append is decided in context.py and lower/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyquant import circle
from pyquant.exporter.constant import Constant
from pyquant.exporter.plan import FLOATS, Graph, Location, Op, Quant, Tensor
from pyquant.exporter.values import Const, Ref

_NO_SITE = "it is a constant without a site; declare one (const(name, value)) in its wrapper"


class Builder:
    """Collects a plan.Graph. Names are unique and depend on the graph alone."""

    def __init__(self, reserved: Sequence[str]) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Op] = []
        self.constants: list[Constant] = []
        self._names: dict[str, int] = dict.fromkeys(reserved, 1)
        self._placed: dict[int, tuple[Const, int]] = {}  # id(Const) -> (the Const, kept alive; its tensor)

    def unique(self, name: str) -> str:
        """`name`, or `name_2`, `name_3` ... when the name is in use."""
        count = self._names.get(name, 0) + 1
        self._names[name] = count
        return name if count == 1 else self.unique(f"{name}_{count}")

    def add(self, tensor: Tensor) -> Ref:
        self.tensors.append(tensor)
        return Ref(len(self.tensors) - 1)

    def update(self, ref: Ref, **changes: Any) -> None:
        """Change fields of a tensor that exists (its name or origin)."""
        self.tensors[ref.index] = replace(self.tensors[ref.index], **changes)

    def emit(
        self,
        op: str,
        inputs: Sequence[Ref | Const | None],
        options: Mapping[str, Any] | None,
        *,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        where: Location,
        quant: Quant | None = None,
        note: str = "",
    ) -> Ref:
        """Append one operator with one output, and return the output."""
        _check_row(op, len(inputs), options or {})
        indices = tuple(-1 if value is None else self.place(value).index for value in inputs)
        assert quant is None or quant.dtype == dtype, f"{op}: {dtype} on a grid of {quant}"
        out = self.add(
            Tensor(self.unique(name), dtype, shape, quant, where=where, note=note if dtype in FLOATS else "")
        )
        self.operators.append(Op(op, indices, (out.index,), dict(options or {}), where))
        return out

    def place(self, value: Ref | Const) -> Ref:
        """The tensor of a value; a constant becomes one on first use."""
        if isinstance(value, Ref):
            return value
        if id(value) not in self._placed:
            data, dtype = value.constant()
            note = _NO_SITE if value.quant is None and value.block is None and value.floating else ""
            self.constants.append(data)
            tensor = Tensor(
                self.unique(value.name),
                dtype,
                value.shape,
                value.quant,
                constant=len(self.constants) - 1,
                where=value.where,
                note=note,
            )
            self._placed[id(value)] = (value, self.add(tensor).index)
        return Ref(self._placed[id(value)][1])

    def graph(self, name: str, inputs: Sequence[Ref], outputs: Sequence[Ref], metadata: Mapping[str, str]) -> Graph:
        return Graph(
            name,
            tuple(self.tensors),
            tuple(self.operators),
            tuple(ref.index for ref in inputs),
            tuple(ref.index for ref in outputs),
            tuple(self.constants),
            dict(metadata),
        )


def _check_row(op: str, count: int, options: Mapping[str, Any]) -> None:
    """A lowering writes what the one table of operators (ops.def) has: a name, how many inputs, which options."""
    row = circle.operators().get(op)
    assert row is not None, f"ops.def has no operator {op}"
    most = count if row.max_inputs is None else row.max_inputs
    assert row.min_inputs <= count <= most, f"{op} takes {row.min_inputs} to {most} inputs, got {count}"
    known = [option.name for option in row.options]
    assert set(options) <= set(known), f"{op} has the options {known}, got {list(options)}"
