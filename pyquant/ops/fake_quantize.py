# SPDX-License-Identifier: Apache-2.0
"""fake_quantize: a float tensor rounded to the values of an integer grid, with a straight-through gradient.

It owns the differentiable function of the operator and its Meta kernel; integers are quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops._native import meta, native, op_error

_fake_quantize: Callable[..., Tensor] = native("fake_quantize")
_backward: Callable[..., Tensor] = native("fake_quantize_backward")


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    """`(clamp(round_half_away(x / scale) + zero_point, qmin, qmax) - zero_point) * scale`, computed in float32.

    x: float32, bfloat16 or float16, any shape. The result is contiguous and has x's shape and dtype. scale (float32)
    and zero_point (int32) are () per tensor, (C,) per channel of `axis`, or x's shape with `axis` divided by `group`.
    NaN becomes the value of qmin, infinities saturate, no result is -0. The gradient passes where x is representable
    (rounds onto the grid without clamping) and is 0 elsewhere. Raises OpArgumentError for a wrong dtype, shape, axis,
    group or grid, and (on CPU) for a scale that is not finite and positive or a zero point off the grid.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _StraightThrough.apply(x, scale, zero_point, axis, group, qmin, qmax)  # type: ignore[no-untyped-call]
        return out
    try:
        return _fake_quantize(x, scale, zero_point, axis, group, qmin, qmax)
    except RuntimeError as error:
        raise op_error(error) from None


class _StraightThrough(torch.autograd.Function):
    """Outside the operator on purpose: a registered autograd formula costs 7 us on every call, no_grad included."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rest = (axis, group, qmin, qmax)
        try:
            return _fake_quantize(x, scale, zero_point, axis, group, qmin, qmax)
        except RuntimeError as error:
            raise op_error(error) from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        return _backward(grad, x, scale, zero_point, *ctx.rest), None, None, None, None, None, None


@meta("fake_quantize")
def _fake_quantize_meta(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    _checks.check_dtype("fake_quantize", "x", x, *_checks.FLOATS)
    _checks.check_grid("fake_quantize", qmin, qmax)
    _checks.check_scales("fake_quantize", x, scale, zero_point, axis, group)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@meta("fake_quantize_backward")
def _backward_meta(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    _checks.check_dtype("fake_quantize_backward", "grad", grad, x.dtype)
    _checks.check_scales("fake_quantize_backward", x, scale, zero_point, axis, group)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
