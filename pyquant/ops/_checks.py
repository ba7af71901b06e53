# SPDX-License-Identifier: Apache-2.0
"""Argument checks in Python, for Meta kernels and for the reference; the CPU kernels make the same checks in C++.

It owns the messages of shapes, dtypes and grids. Values of scales are checked where they can be read without waiting
for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int16: (-32768, 32767)}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, name: str, tensor: Tensor, *expected: torch.dtype) -> None:
    if tensor.dtype not in expected:
        names = " or ".join(name_of(d) for d in expected)
        raise OpArgumentError(f"{op}: {name} is {name_of(tensor.dtype)}; expected {names}")


def check_grid(op: str, qmin: int, qmax: int) -> None:
    if not -32768 <= qmin < qmax <= 65535:
        raise OpArgumentError(f"{op}: the grid [{qmin}, {qmax}] is invalid; expected -32768 <= qmin < qmax <= 65535")


def check_search_grid(op: str, qmin: int, qmax: int, symmetric: bool) -> None:
    check_grid(op, qmin, qmax)
    if symmetric and qmax <= 0:
        raise OpArgumentError(f"{op}: a symmetric grid needs a positive qmax, got {qmax}")


def check_bits(op: str, bits: int) -> None:
    if bits not in (32, 64):
        raise OpArgumentError(f"{op}: bits is {bits}; expected 32 (8-bit input) or 64 (16-bit input)")


def scale_shape(op: str, x: Tensor, axis: int | None, group: int) -> list[int]:
    """The shape of x's scales: () per tensor, (C,) per channel, x's shape with `axis` divided by `group` otherwise."""
    if axis is None:
        if group != 0:
            raise OpArgumentError(f"{op}: group is {group} and axis is None; groups need the axis that they divide")
        return []
    if not -x.dim() <= axis < x.dim():
        raise OpArgumentError(f"{op}: axis {axis} is out of range for x of shape {tuple(x.shape)}")
    axis %= x.dim()
    if group < 0:
        raise OpArgumentError(f"{op}: group is {group}; expected 0 (one scale per channel) or a positive size")
    if group == 0:
        return [x.shape[axis]]
    if x.shape[axis] % group != 0:
        raise OpArgumentError(f"{op}: group {group} does not divide dimension {axis} of x of shape {tuple(x.shape)}")
    return [n // group if d == axis else n for d, n in enumerate(x.shape)]


def check_scales(op: str, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int) -> None:
    """dtype, device and shape of scale and zero_point."""
    check_dtype(op, "scale", scale, torch.float32)
    check_dtype(op, "zero_point", zero_point, torch.int32)
    expected = scale_shape(op, x, axis, group)
    for name, tensor in (("scale", scale), ("zero_point", zero_point)):
        if tensor.device != x.device:
            raise OpArgumentError(
                f"{op}: {name} is on {tensor.device}, x is on {x.device}; move all tensors to one device"
            )
        if not _same_shape(tensor.shape, expected):
            raise OpArgumentError(
                f"{op}: {name} has shape {tuple(tensor.shape)}, which does not fit x of shape {tuple(x.shape)} with "
                f"axis {axis} and group {group}; expected () per tensor, (x.size(axis),) per channel, x's shape with "
                "axis divided by group otherwise"
            )


def check_rounding(
    op: str, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> None:
    """The arguments of fake_quantize, its gradient and quantize; values of scales where they can be read."""
    check_dtype(op, "x", x, *FLOATS)
    check_grid(op, qmin, qmax)
    check_scales(op, x, scale, zero_point, axis, group)
    check_values(op, scale, zero_point, qmin, qmax)


def check_state(op: str, name: str, tensor: Tensor, dtype: torch.dtype, numel: int) -> None:
    check_dtype(op, name, tensor, dtype)
    if tensor.numel() != numel:
        raise OpArgumentError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {numel} elements")


def check_values(
    op: str, scale: Tensor, zero_point: Tensor | None = None, qmin: int = -32768, qmax: int = 65535
) -> None:
    """Raises unless scales are finite and positive and zero points on the grid.

    Only on CPU, where reading does not wait for a device.
    """
    if scale.device.type != "cpu":
        return
    for index, value in enumerate(scale.flatten().tolist()):
        if not (value > 0 and math.isfinite(value)):
            raise OpArgumentError(f"{op}: scale number {index} is {value:g}; every scale must be finite and positive")
    for index, value in enumerate([] if zero_point is None else zero_point.flatten().tolist()):
        if not qmin <= value <= qmax:
            raise OpArgumentError(
                f"{op}: zero_point number {index} is {value}; it must lie on the grid [{qmin}, {qmax}]"
            )


def _same_shape(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(a == b for a, b in zip(shape, expected, strict=True))
