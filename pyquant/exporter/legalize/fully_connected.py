# SPDX-License-Identifier: Apache-2.0
"""FULLY_CONNECTED on matrices only: leading dimensions are flattened before and restored after.

onert 0.1.0 gives a result of rank 2 for any keep_num_dims, aborts on GGML weights unless the data has rank 2, and
accepts no bias with them: the bias becomes an ADD.
"""

from __future__ import annotations

import math

from pyquant.exporter.legalize.editor import SUM, Editor
from pyquant.exporter.plan import Graph, Op


def flatten_rows(graph: Graph) -> Graph:
    """Every FULLY_CONNECTED as RESHAPE, FULLY_CONNECTED, [ADD], RESHAPE where it needs them."""
    edit = Editor(graph)
    for op in graph.operators:
        if op.op == "FULLY_CONNECTED":
            _flatten(edit, op)
        else:
            edit.keep(op)
    return edit.graph()


def _flatten(edit: Editor, op: Op) -> None:
    (x, weight, bias), (out,) = op.inputs, op.outputs
    shape = edit.tensors[out].shape
    flat = (math.prod(shape[:-1]), shape[-1])
    rows = edit.reshape(x, (flat[0], edit.tensors[x].shape[-1]), op)
    apart = bias != -1 and edit.tensors[weight].dtype.startswith("ggml")
    last = out if shape == flat else None
    options = {**op.options, "keep_num_dims": False}
    inputs = (rows, weight, -1 if apart else bias)
    result = edit.emit(op.op, inputs, options, op, like=out, shape=flat, out=None if apart else last)
    if apart:
        result = edit.emit("ADD", [result, bias], SUM, op, like=out, shape=flat, out=last)
    if last is None:
        edit.reshape(result, shape, op, out=out)
