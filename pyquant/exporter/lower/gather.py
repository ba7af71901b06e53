# SPDX-License-Identifier: Apache-2.0
"""Look-ups by index: embedding, index_select, and indexing with one integer tensor. All are GATHER.

The result has the table's grid; a table with a scale per row has no such grid, and one in blocks gives floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyquant.exporter.context import Context
from pyquant.exporter.registry import Kind, lowers
from pyquant.exporter.values import Const, Ref


def gather(cx: Context, table: Ref | Const, indices: Ref | Const, axis: int) -> Ref:
    """GATHER along `axis`. Constant indices are stored as int32."""
    if isinstance(indices, Const) and indices.dtype == torch.int64:
        wide = indices
        indices = Const(wide.name, wide.shape, torch.int32, lambda: wide.value().to(torch.int32), wide.where)
    options = {"axis": axis % len(cx.shape(table)), "batch_dims": 0}
    if isinstance(table, Const) and table.block is not None:  # the operator decodes the rows that it gathers
        return cx.emit("GATHER", [table, indices], options, dtype="float32", note="its table is in blocks")
    quant = cx.quant(table)
    if quant is None or quant.per_tensor:
        return cx.move("GATHER", table, [indices], options)
    note = "its table has a scale per channel, which a gathered value cannot keep; use PerTensor() for embeddings"
    return cx.emit("GATHER", [table, indices], options, dtype="float32", note=note)


@lowers("aten.embedding.default", kind=Kind.MOVE)
def embedding(
    cx: Context,
    table: Ref | Const,
    indices: Ref | Const,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Ref:
    return gather(cx, table, indices, 0)


@lowers("aten.index_select.default", kind=Kind.MOVE)
def index_select(cx: Context, x: Ref | Const, dim: int, index: Ref | Const) -> Ref:
    return gather(cx, x, index, dim)


@lowers("aten.index.Tensor", kind=Kind.MOVE)
def index(cx: Context, x: Ref | Const, indices: Sequence[Ref | Const | None]) -> Ref:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1 or cx.dtype(given[0][1]) not in ("int32", "int64"):
        raise cx.error(
            "indexing takes one integer tensor (a GATHER); a mask or several tensors have no static Circle form"
        )
    return gather(cx, x, given[0][1], given[0][0])
