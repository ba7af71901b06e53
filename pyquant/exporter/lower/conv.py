# SPDX-License-Identifier: Apache-2.0
"""Convolutions: CONV_2D, and DEPTHWISE_CONV_2D for one filter a channel, on (batch, height, width, channels).

Torch's layout is reached by TRANSPOSE before and after, which passes/transpose.py removes where a wrapper transposes
too. Circle's own padding (SAME) differs from torch's for even sizes, so padding is a PAD before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyquant.exporter.context import Context
from pyquant.exporter.grid import widest
from pyquant.exporter.lower.arith import FUSED
from pyquant.exporter.lower.linear import bias_for, check_bias
from pyquant.exporter.lower.move import pad_of
from pyquant.exporter.registry import lowers
from pyquant.exporter.values import Const, Ref, Value

_TO_CIRCLE, _TO_TORCH = (0, 2, 3, 1), (0, 3, 1, 2)
_FILTER = (0, 2, 3, 1)  # (out, in, h, w) -> (out, h, w, in)
_DEPTHWISE_FILTER = (1, 2, 3, 0)  # (channels * multiplier, 1, h, w) -> (1, h, w, channels * multiplier)


@lowers("aten.conv2d.default")
def conv2d(
    cx: Context,
    x: Ref | Const,
    weight: Ref | Const,
    bias: Value = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Ref:
    """x (N, C, H, W), weight (O, C / groups, h, w), bias (O,) or None -> (N, O, H', W')."""
    assert bias is None or isinstance(bias, Ref | Const)
    channels, (outputs, *_) = cx.shape(x)[1], cx.shape(weight)
    if len(cx.shape(x)) != 4:
        raise cx.error(f"CONV_2D takes a batch (N, C, H, W), got shape {cx.shape(x)}; unsqueeze it")
    if groups not in (1, channels):
        raise cx.error(
            f"groups={groups} of {channels} channels has no Circle form: 1 (CONV_2D) and {channels} "
            "(DEPTHWISE_CONV_2D) have; split the channels, and concatenate"
        )
    depthwise = groups > 1
    options: dict[str, object] = {
        **FUSED,
        "padding": "VALID",
        **dict(zip(("stride_h", "stride_w"), _pair(stride), strict=True)),
        **dict(zip(("dilation_h_factor", "dilation_w_factor"), _pair(dilation), strict=True)),
    }
    if depthwise:
        options["depth_multiplier"] = outputs // channels
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    high, wide = _pair(padding)
    padded = pad_of(cx, _permuted(cx, x, _TO_CIRCLE), ((0, 0), (high, high), (wide, wide), (0, 0)))
    kernel = _kernel(cx, weight, _DEPTHWISE_FILTER if depthwise else _FILTER)
    batch, _, height, width = cx.out_shape
    out = _product(cx, op, padded, kernel, bias, options, (batch, height, width, outputs))
    result = _permuted(cx, out, _TO_TORCH)
    assert isinstance(result, Ref)
    return result


def _product(
    cx: Context,
    op: str,
    x: Ref | Const,
    kernel: Const,
    bias: Ref | Const | None,
    options: dict[str, object],
    shape: tuple[int, ...],
) -> Ref:
    operands = [value for value in (x, kernel, bias) if value is not None]
    if cx.want is not None and all(cx.quant(value) is not None for value in operands):
        check_bias(cx, x, kernel, bias)
        dtype = widest([cx.dtype(x), cx.want.dtype])
        inputs = [cx.widen(x, dtype), kernel, bias_for(dtype, bias)]
        return cx.result(op, inputs, options, cx.want, dtype, shape=shape)
    note = cx.note([value for value in operands if cx.quant(value) is None])
    floats = [cx.dequantize(x), cx.dequantize(kernel), None if bias is None else cx.dequantize(bias)]
    return cx.emit(op, floats, options, shape=shape, note=note)


def _kernel(cx: Context, weight: Ref | Const, order: tuple[int, ...]) -> Const:
    """The filters in Circle's order. A scale per output channel moves with them."""
    if not isinstance(weight, Const):
        raise cx.error("the weight is computed in the graph; the filters of a convolution are constants")
    const, quant = weight, weight.quant
    if quant is not None and quant.axis not in (None, 0):
        raise cx.error(
            f"the weight has scales along axis {quant.axis}; a convolution has one for each filter: PerAxis(0)"
        )
    moved = None if quant is None or quant.axis is None else replace(quant, axis=order.index(0))
    shape = tuple(weight.shape[axis] for axis in order)
    ints = None if quant is None else (lambda: const.ints().permute(order).contiguous())
    return Const(
        weight.name,
        shape,
        weight.dtype,
        lambda: const.value().permute(order).contiguous(),
        weight.where,
        quant if moved is None else moved,
        ints,
    )


def _permuted(cx: Context, x: Ref | Const, order: tuple[int, ...]) -> Ref | Const:
    shape = cx.shape(x)
    return cx.move("TRANSPOSE", x, [cx.ints(order, "perm")], shape=tuple(shape[axis] for axis in order))


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    """Torch also takes one number for both axes."""
    given = tuple(sizes)
    return (given[0], given[0]) if len(given) == 1 else (given[0], given[1])
