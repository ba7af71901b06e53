# SPDX-License-Identifier: Apache-2.0
"""Normalization: RMS_NORM, and layer_norm as elementary float operators.

A wrapper decomposes a quantized layer_norm, with a site on each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyquant.exporter.context import Context
from pyquant.exporter.lower.arith import FUSED
from pyquant.exporter.lower.move import reshape
from pyquant.exporter.registry import lowers
from pyquant.exporter.values import Const, Ref, Value


@lowers("aten.rms_norm.default")
def rms_norm(
    cx: Context, x: Value, normalized_shape: Sequence[int], weight: Value = None, eps: float | None = None
) -> Ref | Const:
    """RMS_NORM over the last dimension. The runtimes take rank 3 and 4, so other ranks are reshaped to rank 3."""
    assert isinstance(x, Ref | Const)
    _last_only(cx, normalized_shape)
    epsilon = torch.finfo(cx.fake.dtype).eps if eps is None else eps
    shape = cx.shape(x)
    flat = shape if len(shape) in (3, 4) else (1, torch.Size(shape[:-1]).numel(), shape[-1])
    gamma = _ones(cx) if weight is None else weight
    y = cx.compute("RMS_NORM", [reshape(cx, x, flat), gamma], {"epsilon": float(epsilon)}, weights=1, shape=flat)
    return reshape(cx, y, shape)


@lowers("aten.layer_norm.default")
def layer_norm(
    cx: Context,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Ref:
    """Float only: MEAN SUB MUL MEAN ADD RSQRT MUL, then MUL gamma and ADD beta."""
    _last_only(cx, normalized_shape)
    note = "layer_norm has no quantized Circle form: its wrapper must write the steps, with a site on each"
    shape, value, axes = cx.shape(x), cx.dequantize(x), cx.ints([len(cx.shape(x)) - 1], "axes")
    row = (*shape[:-1], 1)
    mean = cx.emit("MEAN", [value, axes], {"keep_dims": True}, shape=row, note=note)
    centred = cx.emit("SUB", [value, mean], {**FUSED, "pot_scale_int16": False}, note=note)
    squares = cx.emit("MUL", [centred, centred], FUSED, note=note)
    variance = cx.emit("MEAN", [squares, axes], {"keep_dims": True}, shape=row, note=note)
    safe = cx.emit("ADD", cx.floats([variance, eps]), {**FUSED, "pot_scale_int16": False}, shape=row, note=note)
    inverse = cx.emit("RSQRT", [safe], shape=row, note=note)
    y = cx.emit("MUL", [centred, inverse], FUSED, note=note)
    if weight is not None:
        y = cx.emit("MUL", [y, cx.dequantize(weight)], FUSED, note=note)
    if bias is not None:
        y = cx.emit("ADD", [y, cx.dequantize(bias)], {**FUSED, "pot_scale_int16": False}, note=note)
    return y


def _ones(cx: Context) -> Const:
    """A gamma of ones, which every grid represents exactly."""
    return Const("ones", (1,), torch.float32, lambda: torch.ones(1, dtype=torch.float32, device="cpu"), cx.where)


def _last_only(cx: Context, normalized_shape: Sequence[int]) -> None:
    if len(normalized_shape) != 1:
        raise cx.error(
            f"only the last dimension can be normalized, got normalized_shape {list(normalized_shape)}; flatten first"
        )
