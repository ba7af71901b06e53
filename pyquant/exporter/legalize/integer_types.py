# SPDX-License-Identifier: Apache-2.0
"""Operators on int64 and bool that onert has no kernel for, as the same operators on int32 between CASTs.

Which types an operator runs with is in the table (ops.def). A graph computes indices in int64, and every index of a
Circle tensor fits int32. Operators that int32 does not help are integer_forms.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyquant import circle
from pyquant.exporter.legalize.editor import Editor
from pyquant.exporter.legalize.integer_forms import FORMS
from pyquant.exporter.plan import Graph, Op

_ROUTED: Mapping[str, str] = {"int64": "int32", "bool": "int32"}


def route_integers(graph: Graph) -> Graph:
    """CAST the data, run the operator on int32, CAST its result back, where only that makes it run."""
    edit = Editor(graph)
    for op in graph.operators:
        row = circle.operators()[op.op]
        data = [place for place in range(len(op.inputs)) if row.input(place).role == "x"]
        dtype = edit.tensors[op.inputs[data[0]]].dtype if data else ""
        through = _ROUTED.get(dtype)
        if through is None or _runs(op, dtype) or not _runs(op, through):
            edit.keep(op)
            continue
        assert len(op.outputs) == 1, f"no lowering writes {op.op}, which has several results"
        inputs = tuple(
            _as(edit, index, through, op) if place in data else index for place, index in enumerate(op.inputs)
        )
        if row.outputs[0].role != "x":
            edit.keep(op, inputs=inputs)
            continue
        narrow = edit.new(op.outputs[0], through)
        edit.keep(op, inputs=inputs, outputs=(narrow,))
        edit.cast(narrow, dtype, op, out=op.outputs[0])
    return edit.graph()


def _runs(op: Op, dtype: str) -> bool:
    return dtype in circle.operators()[op.op].onert or dtype in FORMS.get(op.op, ((),))[0]


def _as(edit: Editor, index: int, dtype: str, op: Op) -> int:
    if edit.is_constant(index):
        old, to = edit.value(index), getattr(torch, dtype)
        return edit.constant(old.map(lambda data: data.to(to), to, old.shape), edit.tensors[index].name, op)
    return edit.cast(index, dtype, op)
