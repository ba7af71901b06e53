# SPDX-License-Identifier: Apache-2.0
"""SLICE, MAXIMUM and SELECT of integers by operators that have integer kernels in onert; float ones stay as they are.

Casts to an integer type that onert does have are integer_types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pyquant.exporter.legalize.editor import FUSED, SUM, Editor
from pyquant.exporter.passes.rewire import ints
from pyquant.exporter.plan import Graph, Op


def rewrite_integers(graph: Graph) -> Graph:
    """Every operator of FORMS on one of its types."""
    edit = Editor(graph)
    for op in graph.operators:
        dtypes, rewrite = FORMS.get(op.op, ((), _slice))
        if edit.tensors[op.outputs[0]].dtype in dtypes:
            rewrite(edit, op)
        else:
            edit.keep(op)
    return edit.graph()


def _slice(edit: Editor, op: Op) -> None:
    """STRIDED_SLICE with steps of 1."""
    x, begin, _ = op.inputs
    first = ints(edit.before, begin)
    last = [start + size for start, size in zip(first, edit.tensors[op.outputs[0]].shape, strict=True)]
    vectors = [
        edit.constant(torch.tensor(numbers, dtype=torch.int32, device="cpu"), name, op)
        for numbers, name in ((first, "begin"), (last, "end"), ([1] * len(first), "strides"))
    ]
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    options = dict.fromkeys(masks, 0) | {"offset": False}
    edit.emit("STRIDED_SLICE", [x, *vectors], options, op, like=op.outputs[0], out=op.outputs[0])


def _maximum(edit: Editor, op: Op) -> None:
    """-min(-x, -y)."""
    negated = [
        edit.constant(-edit.value(index).tensor(), edit.tensors[index].name, op)
        if edit.is_constant(index)
        else edit.emit("NEG", [index], {}, op, like=index)
        for index in op.inputs
    ]
    least = edit.emit("MINIMUM", negated, {}, op, like=op.outputs[0])
    edit.emit("NEG", [least], {}, op, like=op.outputs[0], out=op.outputs[0])


def _select(edit: Editor, op: Op) -> None:
    """y + mask * (x - y)."""
    mask, x, y = op.inputs
    (out,) = op.outputs
    shape = [edit.tensors[index].shape for index in op.inputs]
    apart = tuple(torch.broadcast_shapes(*shape[1:]))  # type: ignore[no-untyped-call]
    difference = edit.emit("SUB", [x, y], SUM, op, like=out, shape=apart)
    ones = edit.emit(
        "CAST",
        [mask],
        {"in_data_type": "BOOL", "out_data_type": edit.tensors[out].dtype.upper()},
        op,
        like=out,
        shape=shape[0],
    )
    chosen = edit.emit("MUL", [ones, difference], FUSED, op, like=out)
    edit.emit("ADD", [y, chosen], SUM, op, like=out, out=out)


#: operator -> the types on which it is rewritten, and how
FORMS: Mapping[str, tuple[tuple[str, ...], Callable[[Editor, Op], None]]] = {
    "SLICE": (("int32", "int64"), _slice),
    "MAXIMUM": (("int32",), _maximum),
    "SELECT": (("int32", "int64"), _select),
    "SELECT_V2": (("int32", "int64"), _select),
}
