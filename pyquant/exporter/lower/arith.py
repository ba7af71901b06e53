# SPDX-License-Identifier: Apache-2.0
"""Elementwise arithmetic: add, sub, mul, div, powers and roots, neg, abs, exp, and the integer forms of the same.

Activation functions (softmax, gelu ...) are activation.py; comparisons are comparison.py.
"""

from __future__ import annotations

from pyquant.exporter.context import Context
from pyquant.exporter.plan import Quant
from pyquant.exporter.registry import lowers
from pyquant.exporter.values import Ref, Value

FUSED = {"fused_activation_function": "NONE"}
_SUM = {**FUSED, "pot_scale_int16": False}


@lowers("aten.add.Tensor", "aten.add.Scalar")
def add(cx: Context, x: Value, y: Value, *, alpha: float = 1) -> Ref:
    if alpha == -1:
        return cx.compute("SUB", [x, y], _SUM)
    return cx.compute("ADD", [x, _scaled(cx, y, alpha)], _SUM)


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def sub(cx: Context, x: Value, y: Value, alpha: float = 1) -> Ref:
    return cx.compute("SUB", [x, _scaled(cx, y, alpha)], _SUM)


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(cx: Context, x: Value, y: Value, alpha: float = 1) -> Ref:
    return cx.compute("SUB", [y, _scaled(cx, x, alpha)], _SUM)


@lowers("aten.mul.Tensor", "aten.mul.Scalar")
def mul(cx: Context, x: Value, y: Value) -> Ref:
    return cx.compute("MUL", [x, y], FUSED)


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div(cx: Context, x: Value, y: Value, *, rounding_mode: str | None = None) -> Ref:
    if rounding_mode is not None:
        raise cx.error(
            f"rounding_mode={rounding_mode!r} has no Circle form here; do integer index arithmetic in the adapter"
        )
    return cx.compute("DIV", [x, y], FUSED)


@lowers("aten.reciprocal.default")
def reciprocal(cx: Context, x: Value) -> Ref:
    return cx.compute("DIV", [1.0, x], FUSED)


@lowers("aten.square.default")
def square(cx: Context, x: Value) -> Ref:
    return cx.compute("MUL", [x, x], FUSED)


@lowers("aten.pow.Tensor_Scalar")
def power(cx: Context, x: Value, exponent: float) -> Value:
    """The powers that have an operator of their own; POW with a scalar for the rest."""
    if exponent == 1:
        return x
    if exponent == 2:
        return cx.compute("MUL", [x, x], FUSED)
    if exponent == -1:
        return reciprocal(cx, x)
    if exponent in (0.5, -0.5):
        return cx.compute("SQRT" if exponent > 0 else "RSQRT", [x])
    return cx.compute("POW", [x, exponent])


@lowers("aten.pow.Tensor_Tensor")
def power_of_tensors(cx: Context, x: Value, y: Value) -> Ref:
    return cx.compute("POW", [x, y])


@lowers("aten.neg.default")
def neg(cx: Context, x: Value) -> Ref:
    return cx.compute("NEG", [x], inherit=_symmetric(cx.quant(x)))


@lowers("aten.abs.default")
def absolute(cx: Context, x: Value) -> Ref:
    return cx.compute("ABS", [x], inherit=_symmetric(cx.quant(x)))


@lowers("aten.sqrt.default")
def sqrt(cx: Context, x: Value) -> Ref:
    return cx.compute("SQRT", [x])


@lowers("aten.rsqrt.default")
def rsqrt(cx: Context, x: Value) -> Ref:
    return cx.compute("RSQRT", [x])


@lowers("aten.exp.default")
def exp(cx: Context, x: Value) -> Ref:
    return cx.compute("EXP", [x])


@lowers("aten.log.default")
def log(cx: Context, x: Value) -> Ref:
    return cx.compute("LOG", [x])


@lowers("aten.sin.default")
def sin(cx: Context, x: Value) -> Ref:
    return cx.compute("SIN", [x])


@lowers("aten.cos.default")
def cos(cx: Context, x: Value) -> Ref:
    return cx.compute("COS", [x])


def _scaled(cx: Context, value: Value, alpha: float) -> Value:
    if alpha == 1:
        return value
    if isinstance(value, int | float):
        return value * alpha
    return cx.compute("MUL", [value, alpha], FUSED, shape=cx.shape(value))


def _symmetric(quant: Quant | None) -> bool:
    return quant is not None and quant.symmetric
