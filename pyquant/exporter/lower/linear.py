# SPDX-License-Identifier: Apache-2.0
"""Linear layers and matrix products: FULLY_CONNECTED and BATCH_MATMUL.

It owns the check that a bias is on the grid of input x weight. Folding transposes into BATCH_MATMUL is a pass.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pyquant.exporter.context import Context
from pyquant.exporter.grid import widest
from pyquant.exporter.lower.arith import FUSED
from pyquant.exporter.registry import lowers
from pyquant.exporter.values import Const, Ref, Value

_FULLY_CONNECTED = {
    **FUSED,
    "weights_format": "DEFAULT",
    "keep_num_dims": True,
    "asymmetric_quantize_inputs": False,
}
_BATCH_MATMUL = {"adjoint_lhs": False, "adjoint_rhs": False, "asymmetric_quantize_inputs": False}


@lowers("aten.linear.default")
def linear(cx: Context, x: Value, weight: Ref | Const, bias: Value = None) -> Ref:
    """x (..., I), weight (O, I), bias (O,) or None. A quantized weight under a float input stays quantized (hybrid)."""
    assert isinstance(x, Ref | Const)
    assert bias is None or isinstance(bias, Ref | Const)
    quant = cx.quant(weight)
    if quant is not None and quant.axis not in (None, 0):
        raise cx.error(
            f"the weight has one scale per input channel (axis {quant.axis}), and FULLY_CONNECTED has one per output "
            "channel; use PerAxis(0)"
        )
    operands = [value for value in (x, weight, bias) if value is not None]
    if cx.want is not None and all(cx.quant(value) is not None for value in operands):
        check_bias(cx, x, weight, bias)
        dtype = widest([cx.dtype(x), cx.want.dtype])
        inputs = [cx.widen(x, dtype), weight, bias_for(dtype, bias)]
        return cx.result("FULLY_CONNECTED", inputs, _FULLY_CONNECTED, cx.want, dtype)
    hybrid = weight if isinstance(weight, Const) else cx.dequantize(weight)
    inputs = [cx.dequantize(x), hybrid, None if bias is None else cx.dequantize(bias)]
    note = cx.note([value for value in operands if cx.quant(value) is None])
    return cx.emit("FULLY_CONNECTED", inputs, _FULLY_CONNECTED, note=note)


@lowers("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def matmul(cx: Context, x: Value, y: Value) -> Ref:
    if len(cx.shape(x)) < 2 or len(cx.shape(y)) < 2:
        raise cx.error(f"BATCH_MATMUL takes matrices, got shapes {cx.shape(x)} and {cx.shape(y)}; unsqueeze the vector")
    return cx.compute("BATCH_MATMUL", [x, y], _BATCH_MATMUL, weights=1)


def bias_for(dtype: str, bias: Ref | Const | None) -> Ref | Const | None:
    """The accumulator of 16-bit activations has 64 bits, and so has its bias."""
    if not isinstance(bias, Const) or bias.quant is None or (dtype, bias.quant.dtype) != ("int16", "int32"):
        return bias
    narrow, quant = bias, replace(bias.quant, dtype="int64")
    return Const(bias.name, bias.shape, bias.dtype, bias.value, bias.where, quant, lambda: narrow.ints().long())


def check_bias(cx: Context, x: Ref | Const, weight: Ref | Const, bias: Ref | Const | None) -> None:
    """A bias is added to the integer accumulator, so its scale is input scale x weight scale, in float32."""
    if bias is None:
        return
    given, act, kernel = cx.quant(bias), cx.quant(x), cx.quant(weight)
    assert given is not None
    assert act is not None
    assert kernel is not None
    expected = np.float32(act.scale[0]) * np.array(kernel.scale, np.float32)
    seen = np.array(given.scale, np.float32)
    if given.dtype not in ("int32", "int64"):
        raise cx.error(f"the bias is {given.dtype}; it must be int32 or int64: use pyquant.ops.fake_quantize_bias")
    if not np.array_equal(np.broadcast_to(expected, seen.shape) if expected.size == 1 else expected, seen):
        raise cx.error(
            f"the bias has scale {seen[0]:.9g}..., but input scale x weight scale is {expected[0]:.9g}...; "
            "its input was quantized again between the linear's input site and the linear"
        )
