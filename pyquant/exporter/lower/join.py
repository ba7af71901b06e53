# SPDX-License-Identifier: Apache-2.0
"""Operators that join several values into one: cat, stack, where, masked_fill. All parts have one grid.

The rule for unequal grids (QUANTIZE each part, or an error) is Context.join.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyquant.exporter.context import Context
from pyquant.exporter.lower.move import reshape
from pyquant.exporter.registry import Kind, lowers
from pyquant.exporter.values import Const, Ref, Value


@lowers("aten.cat.default", kind=Kind.JOIN)
def cat(cx: Context, parts: Sequence[Value], dim: int = 0) -> Value:
    if len(parts) == 1:
        return parts[0]
    return cx.join("CONCATENATION", parts, _concatenation(cx, dim))


@lowers("aten.stack.default", kind=Kind.JOIN)
def stack(cx: Context, parts: Sequence[Ref | Const], dim: int = 0) -> Value:
    """CONCATENATION of parts of size 1 (the reference runtime has no PACK)."""
    axis = dim % len(cx.out_shape)
    thin = tuple(1 if d == axis else size for d, size in enumerate(cx.out_shape))
    return cat(cx, [reshape(cx, part, thin) for part in parts], axis)


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar", kind=Kind.JOIN)
def where(cx: Context, condition: Ref | Const, x: Value, y: Value) -> Ref:
    return cx.join("SELECT_V2", [x, y], lead=[condition])


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", kind=Kind.JOIN)
def masked_fill(cx: Context, x: Value, mask: Ref | Const, value: Value) -> Ref:
    return cx.join("SELECT_V2", [value, x], lead=[mask])


def _concatenation(cx: Context, dim: int) -> dict[str, object]:
    return {"axis": dim % len(cx.out_shape), "fused_activation_function": "NONE"}
