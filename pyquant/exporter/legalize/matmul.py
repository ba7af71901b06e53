# SPDX-License-Identifier: Apache-2.0
"""BATCH_MATMUL of rank 4 at most, and without a constant on the left: onert supports neither.

The constant becomes the result of a RESHAPE, which onert does not treat as a constant. Leading dimensions that are
more than two become one, after a BROADCAST_TO where the two sides differ in them.
"""

from __future__ import annotations

import math

import torch

from pyquant.exporter.legalize.editor import Editor
from pyquant.exporter.plan import Graph, Op

_MOST = 4


def simplify_matmuls(graph: Graph) -> Graph:
    """Every BATCH_MATMUL in a form that onert runs."""
    edit = Editor(graph)
    for op in graph.operators:
        if op.op == "BATCH_MATMUL":
            _simplify(edit, op)
        else:
            edit.keep(op)
    return edit.graph()


def _simplify(edit: Editor, op: Op) -> None:
    lhs, rhs = op.inputs
    (out,) = op.outputs
    shape = edit.tensors[out].shape
    if edit.is_constant(lhs):
        lhs = _computed(edit, lhs, op)
    if len(shape) <= _MOST:
        edit.keep(op, inputs=(lhs, rhs))
        return
    lead = shape[:-2]
    sides = [_one_lead(edit, side, lead, op) for side in (lhs, rhs)]
    flat = (math.prod(lead), *shape[-2:])
    edit.reshape(edit.emit(op.op, sides, op.options, op, like=out, shape=flat), shape, op, out=out)


def _computed(edit: Editor, index: int, op: Op) -> int:
    """A constant as the result of an operator: stored flat, then reshaped."""
    tensor = edit.tensors[index]
    value = edit.value(index)
    flat = edit.constant(value.map(lambda data: data.reshape(-1), value.dtype, (value.numel,)), tensor.name, op)
    return edit.reshape(flat, tensor.shape, op) if len(tensor.shape) > 1 else flat


def _one_lead(edit: Editor, index: int, lead: tuple[int, ...], op: Op) -> int:
    """An operand as one batch of `lead` matrices."""
    shape = edit.tensors[index].shape
    wide = (*lead, *shape[-2:])
    if shape != wide:
        index = edit.reshape(index, (1,) * (len(wide) - len(shape)) + shape, op)
        size = edit.constant(torch.tensor(wide, dtype=torch.int32, device="cpu"), "shape", op)
        index = edit.emit("BROADCAST_TO", [index, size], {}, op, like=index, shape=wide)
    return edit.reshape(index, (math.prod(lead), *shape[-2:]), op)
