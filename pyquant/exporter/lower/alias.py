# SPDX-License-Identifier: Apache-2.0
"""Operators that change no value in a static graph: clone, contiguous, detach, dropout in eval, casts to the same type.

Casts that do change the type become CAST, except between floats of a quantized value, whose type is its grid's.
"""

from __future__ import annotations

from typing import Any

from pyquant.exporter.context import Context
from pyquant.exporter.plan import FLOATS
from pyquant.exporter.registry import CASTS, Kind, lowers
from pyquant.exporter.values import Const, Ref, Value


@lowers(
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh_copy.default",
    kind=Kind.MOVE,
)
def same(cx: Context, x: Value, **_: Any) -> Value:
    return x


@lowers("aten.dropout.default", kind=Kind.MOVE)
def dropout(cx: Context, x: Value, p: float, train: bool) -> Value:
    if train:
        raise cx.error("dropout is active; call model.eval() before prepare()")
    return x


@lowers("aten._assert_tensor_metadata.default")
def nothing(cx: Context, *_: Any, **__: Any) -> None:
    """A check that tracing has already done."""
    return


@lowers(*CASTS, kind=Kind.MOVE)
def to(cx: Context, x: Ref | Const, *_: Any, **__: Any) -> Ref | Const:
    source, target = cx.dtype(x), cx.out_dtype
    if source == target or (cx.quant(x) is not None and target in FLOATS):
        return x
    options = {"in_data_type": source.upper(), "out_data_type": target.upper()}
    return cx.emit("CAST", [x], options, note=f"it is cast from {source}")
