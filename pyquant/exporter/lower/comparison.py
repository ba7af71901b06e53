# SPDX-License-Identifier: Apache-2.0
"""Comparisons and the logic of their results; maximum, minimum and clamp, which choose between values.

Choosing by a mask (where, masked_fill) is join.py.
"""

from __future__ import annotations

from pyquant.exporter.context import Context
from pyquant.exporter.registry import Kind, lowers
from pyquant.exporter.values import Const, Ref, Value

_COMPARISONS = {
    "eq": "EQUAL",
    "ne": "NOT_EQUAL",
    "lt": "LESS",
    "le": "LESS_EQUAL",
    "gt": "GREATER",
    "ge": "GREATER_EQUAL",
}


@lowers(*(f"aten.{name}.{overload}" for name in _COMPARISONS for overload in ("Tensor", "Scalar")))
def compare(cx: Context, x: Value, y: Value) -> Ref:
    op = _COMPARISONS[str(cx.node.target).split(".")[1]]
    return cx.emit(op, cx.same_kind([x, y]))


@lowers("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.__and__.Tensor")
def logical_and(cx: Context, x: Value, y: Value) -> Ref:
    return cx.emit("LOGICAL_AND", [_mask(cx, x), _mask(cx, y)])


@lowers("aten.logical_or.default", "aten.bitwise_or.Tensor", "aten.__or__.Tensor")
def logical_or(cx: Context, x: Value, y: Value) -> Ref:
    return cx.emit("LOGICAL_OR", [_mask(cx, x), _mask(cx, y)])


@lowers("aten.logical_not.default", "aten.bitwise_not.default")
def logical_not(cx: Context, x: Value) -> Ref:
    return cx.emit("LOGICAL_NOT", [_mask(cx, x)])


@lowers("aten.maximum.default", kind=Kind.JOIN)
def maximum(cx: Context, x: Value, y: Value) -> Ref:
    return cx.join("MAXIMUM", [x, y])


@lowers("aten.minimum.default", kind=Kind.JOIN)
def minimum(cx: Context, x: Value, y: Value) -> Ref:
    return cx.join("MINIMUM", [x, y])


@lowers("aten.clamp.default", "aten.clamp.Tensor", kind=Kind.JOIN)
def clamp(cx: Context, x: Value, min: Value = None, max: Value = None) -> Value:
    """MAXIMUM, then MINIMUM, on one grid: rounding to a grid keeps order, so the bounds may be rounded too."""
    if isinstance(min, int | float) and min == 0 and cx.fake.dtype.is_floating_point:
        x = cx.join("RELU", [x])
    elif min is not None:
        x = cx.join("MAXIMUM", [x, min])
    return x if max is None else cx.join("MINIMUM", [x, max])


@lowers("aten.clamp_min.default", kind=Kind.JOIN)
def clamp_min(cx: Context, x: Value, min: Value) -> Value:
    return clamp(cx, x, min)


@lowers("aten.clamp_max.default", kind=Kind.JOIN)
def clamp_max(cx: Context, x: Value, max: Value) -> Value:
    return clamp(cx, x, None, max)


def _mask(cx: Context, value: Value) -> Ref | Const:
    if not isinstance(value, Ref | Const) or cx.dtype(value) != "bool":
        raise cx.error("logic on integers has no Circle form; only on bool tensors")
    return value
