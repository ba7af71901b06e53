# SPDX-License-Identifier: Apache-2.0
"""GATHER from a table in ggml's blocks: onert decodes Q4_0 by one row of int32 indices only, and Q8_0 not at all.

Linears with such weights are fully_connected.py.
"""

from __future__ import annotations

import math

import torch

from pyquant import ops
from pyquant.exporter.legalize.editor import Editor
from pyquant.exporter.plan import Graph, Op


def decode_tables(graph: Graph) -> Graph:
    """A Q8_0 table becomes the float table of its values; indices of a Q4_0 table one row of int32."""
    edit = Editor(graph)
    for op in graph.operators:
        table = edit.tensors[op.inputs[0]].dtype if op.op == "GATHER" else ""
        if table == "ggml_q8_0":
            edit.keep(op, inputs=(_decoded(edit, op), op.inputs[1]))
        elif table == "ggml_q4_0":
            _one_row(edit, op)
        else:
            edit.keep(op)
    return edit.graph()


def _one_row(edit: Editor, op: Op) -> None:
    table, indices = op.inputs
    (out,) = op.outputs
    if edit.tensors[indices].dtype == "int64":
        indices = edit.cast(indices, "int32", op)
    rows = math.prod(edit.tensors[indices].shape[:-1])
    if rows == 1:
        edit.keep(op, inputs=(table, indices))
        return
    shape = edit.tensors[out].shape
    count = math.prod(edit.tensors[indices].shape)
    flat = edit.reshape(indices, (count,), op)
    edit.reshape(
        edit.emit(op.op, (table, flat), op.options, op, like=out, shape=(count, shape[-1])), shape, op, out=out
    )


def _decoded(edit: Editor, op: Op) -> int:
    table = edit.tensors[op.inputs[0]]
    value = edit.value(op.inputs[0]).map(
        lambda packed: ops.dequantize_blocks(packed.reshape(*table.shape[:-1], -1), 8), torch.float32, table.shape
    )
    return edit.constant(value, f"{table.name}.f", op)
