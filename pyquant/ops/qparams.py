# SPDX-License-Identifier: Apache-2.0
"""choose_qparams: from a range to a scale and a zero point; and the integers of a bias.

It owns the typed functions and their Meta kernels; how a range is found is minmax.py, histogram.py and range_search.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_choose_qparams: Callable[..., tuple[Tensor, Tensor]] = native("choose_qparams")
_quantize_bias: Callable[..., Tensor] = native("quantize_bias")
_fake_quantize_bias: Callable[..., Tensor] = native("fake_quantize_bias")


def choose_qparams(lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(scale float32, zero_point int32) of the ranges [lo, hi] (float32, any one shape).

    Asymmetric: the range is widened to contain 0, `scale = (hi - lo) / (qmax - qmin)`,
    `zero_point = clamp(round_half_away(qmin - lo / scale))`. Symmetric: `scale = max(|lo|, |hi|) / qmax`, zero_point 0.
    Computed in float64. All zeros, or a range too small for a normal float32 scale, gives scale 1. NaN, Inf or lo > hi
    (an observer without data) gives scale NaN, which QParams rejects.
    """
    try:
        return _choose_qparams(lo, hi, qmin, qmax, symmetric)
    except RuntimeError as error:
        raise op_error(error) from None


def quantize_bias(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`clamp(round_half_away(bias / scale))` as int64, within a signed integer of `bits` (32 or 64).

    Computed in float64. bias: float32; scale: float32, () or bias's shape. NaN becomes the smallest integer.
    """
    try:
        return _quantize_bias(observed(bias), scale, bits)
    except RuntimeError as error:
        raise op_error(error) from None


def fake_quantize_bias(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`quantize_bias(...) * scale` in float64, rounded to float32. The gradient passes to bias unchanged."""
    if torch.is_grad_enabled() and bias.requires_grad:
        out: Tensor = _StraightThroughBias.apply(bias, scale, bits)  # type: ignore[no-untyped-call]
        return out
    try:
        return _fake_quantize_bias(bias, scale, bits)
    except RuntimeError as error:
        raise op_error(error) from None


class _StraightThroughBias(torch.autograd.Function):
    """As in fake_quantize.py; a bias has so many bits that none is clamped."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, scale: Tensor, bits: int) -> Tensor:
        try:
            return _fake_quantize_bias(bias, scale, bits)
        except RuntimeError as error:
            raise op_error(error) from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None


def check_ranges(op: str, lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> None:
    _checks.check_dtype(op, "lo", lo, torch.float32)
    _checks.check_dtype(op, "hi", hi, torch.float32)
    _checks.check_search_grid(op, qmin, qmax, symmetric)
    if lo.shape != hi.shape:
        raise OpArgumentError(
            f"{op}: lo has shape {tuple(lo.shape)}, hi has shape {tuple(hi.shape)}; expected one shape"
        )


def check_bias(op: str, bias: Tensor, scale: Tensor, bits: int) -> None:
    _checks.check_dtype(op, "bias", bias, torch.float32)
    _checks.check_dtype(op, "scale", scale, torch.float32)
    _checks.check_bits(op, bits)
    if scale.dim() != 0 and scale.shape != bias.shape:
        raise OpArgumentError(
            f"{op}: scale has shape {tuple(scale.shape)}; expected () or that of bias, {tuple(bias.shape)}"
        )


@meta("choose_qparams")
def _choose_qparams_meta(lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    check_ranges("choose_qparams", lo, hi, qmin, qmax, symmetric)
    return lo.new_empty(lo.shape), lo.new_empty(lo.shape, dtype=torch.int32)


@meta("quantize_bias")
def _quantize_bias_meta(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    check_bias("quantize_bias", bias, scale, bits)
    return bias.new_empty(bias.shape, dtype=torch.int64)


@meta("fake_quantize_bias")
def _fake_quantize_bias_meta(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    check_bias("fake_quantize_bias", bias, scale, bits)
    return bias.new_empty(bias.shape)
