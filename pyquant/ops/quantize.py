# SPDX-License-Identifier: Apache-2.0
"""quantize and dequantize: floats to the integers of a grid and back.

It owns the typed functions and their Meta kernels. The simulation of both in one step is fake_quantize.py; two integers
in a byte are int4.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_quantize: Callable[..., Tensor] = native("quantize")
_dequantize: Callable[..., Tensor] = native("dequantize")


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    group: int,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    """`clamp(round_half_away(x / scale) + zero_point, qmin, qmax)` as int8, uint8 or int16.

    4-bit integers are one per element (not packed). NaN becomes qmin. Arguments and errors as in `fake_quantize`;
    `dtype` must hold the grid.
    """
    try:
        return _quantize(observed(x), scale, zero_point, axis, group, qmin, qmax, dtype)
    except RuntimeError as error:
        raise op_error(error) from None


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int) -> Tensor:
    """`(q - zero_point) * scale` in float32, contiguous, of q's shape. q: int8, uint8 or int16."""
    try:
        return _dequantize(q, scale, zero_point, axis, group)
    except RuntimeError as error:
        raise op_error(error) from None


@meta("quantize")
def _quantize_meta(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    group: int,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    _checks.check_dtype("quantize", "x", x, *_checks.FLOATS)
    _checks.check_grid("quantize", qmin, qmax)
    check_integer_type("quantize", dtype, qmin, qmax)
    _checks.check_scales("quantize", x, scale, zero_point, axis, group)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@meta("dequantize")
def _dequantize_meta(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int) -> Tensor:
    _checks.check_dtype("dequantize", "q", q, *_checks.INTEGERS)
    _checks.check_scales("dequantize", q, scale, zero_point, axis, group)
    return torch.empty_like(q, dtype=torch.float32, memory_format=torch.contiguous_format)


def check_integer_type(op: str, dtype: torch.dtype, qmin: int, qmax: int) -> None:
    if dtype not in _checks.INTEGERS:
        raise OpArgumentError(f"{op}: dtype is {_checks.name_of(dtype)}; expected int8, uint8 or int16")
    low, high = _checks.INTEGERS[dtype]
    if qmin < low or qmax > high:
        raise OpArgumentError(f"{op}: dtype {_checks.name_of(dtype)} cannot hold the grid [{qmin}, {qmax}]")
