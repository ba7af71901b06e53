# SPDX-License-Identifier: Apache-2.0
"""Activation functions: softmax, gelu, sigmoid, tanh, relu, silu.

A wrapper decomposes a quantized silu: the inner sigmoid needs a site, which lowering cannot add.
"""

from __future__ import annotations

import torch

from pyquant.exporter.context import Context
from pyquant.exporter.lower.arith import FUSED
from pyquant.exporter.registry import Kind, lowers
from pyquant.exporter.values import Ref, Value


@lowers("aten.softmax.int")
def softmax(cx: Context, x: Value, dim: int, dtype: torch.dtype | None = None) -> Ref:
    rank = len(cx.shape(x))
    if dim % max(rank, 1) != rank - 1:
        raise cx.error(
            f"SOFTMAX runs over the last dimension, got dim {dim} of rank {rank}; transpose before and after"
        )
    return cx.compute("SOFTMAX", [x], {"beta": 1.0})


@lowers("aten._softmax.default")
def softmax_kernel(cx: Context, x: Value, dim: int, half_to_float: bool) -> Ref:
    return softmax(cx, x, dim)


@lowers("aten.gelu.default")
def gelu(cx: Context, x: Value, *, approximate: str = "none") -> Ref:
    return cx.compute("GELU", [x], {"approximate": approximate == "tanh"})


@lowers("aten.sigmoid.default")
def sigmoid(cx: Context, x: Value) -> Ref:
    return cx.compute("LOGISTIC", [x])


@lowers("aten.tanh.default")
def tanh(cx: Context, x: Value) -> Ref:
    return cx.compute("TANH", [x])


@lowers("aten.relu.default", kind=Kind.JOIN)
def relu(cx: Context, x: Value) -> Ref:
    return cx.join("RELU", [x])


@lowers("aten.silu.default")
def silu(cx: Context, x: Value) -> Ref:
    """Float only: LOGISTIC, then MUL."""
    value = cx.dequantize(x)
    note = "silu has no quantized Circle form: write x * sigmoid(x), with a site on the sigmoid"
    gate = cx.emit("LOGISTIC", [value], note=note)
    return cx.emit("MUL", [value, gate], FUSED, note=note)
