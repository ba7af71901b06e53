# SPDX-License-Identifier: Apache-2.0
"""For each scale of a weight, the range whose grid has the least square error: mse_range, weighted_mse_range.

It owns the typed functions and their Meta kernels; the same over a histogram, for activations, is histogram.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_mse_range: Callable[..., tuple[Tensor, Tensor]] = native("mse_range")
_weighted_mse_range: Callable[..., tuple[Tensor, Tensor]] = native("weighted_mse_range")


def mse_range(x: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(lo, hi), float32, in the shape of the scales: the range whose grid has the least square error over x.

    The candidates are 100 % down to 21 % of the range of the finite values, both ends together; of equal ones the
    widest is taken. Where x has NaN or Inf it is the full range of the rest; (+inf, -inf) where nothing is finite.
    """
    try:
        return _mse_range(observed(x), axis, group, qmin, qmax, symmetric)
    except RuntimeError as error:
        raise op_error(error) from None


def weighted_mse_range(
    x: Tensor, importance: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """(lo, hi) as `mse_range`, of the least sum of `importance[c] * error[r, c] ** 2`.

    x: float32, bfloat16 or float16 (R, C); axis None (one range), axis 0 with group 0 (one a row) or axis 1 with a
    group that divides C. importance: float32 (C,), finite and not negative; the diagonal of the second moments of a
    linear's inputs makes the sum the expected square error of its outputs, as far as inputs are uncorrelated. Only
    the ratios of importances count. The candidates, NaN and Inf are those of `mse_range`; the full range counts values
    of no importance too.
    """
    try:
        return _weighted_mse_range(observed(x), observed(importance), axis, group, qmin, qmax, symmetric)
    except RuntimeError as error:
        raise op_error(error) from None


def check_weighted(
    op: str, x: Tensor, importance: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> list[int]:
    """Check the arguments of weighted_mse_range but for values; the shape of the scales."""
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    _checks.check_search_grid(op, qmin, qmax, symmetric)
    if x.dim() != 2:
        raise OpArgumentError(f"{op}: x has shape {tuple(x.shape)}; expected (rows, columns)")
    _checks.check_dtype(op, "importance", importance, torch.float32)
    if importance.dim() != 1 or importance.shape[0] != x.shape[1]:
        raise OpArgumentError(
            f"{op}: importance has shape {tuple(importance.shape)}; x of shape {tuple(x.shape)} needs ({x.shape[1]},)"
        )
    shape = _checks.scale_shape(op, x, axis, group)
    if axis is not None and (axis % 2 == 0) != (group == 0):
        raise OpArgumentError(
            f"{op}: axis is {axis} and group is {group}; "
            "expected axis None, axis 0 with group 0, or axis 1 with a group"
        )
    return shape


@meta("mse_range")
def _mse_range_meta(
    x: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    _checks.check_dtype("mse_range", "x", x, *_checks.FLOATS)
    _checks.check_search_grid("mse_range", qmin, qmax, symmetric)
    shape = _checks.scale_shape("mse_range", x, axis, group)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@meta("weighted_mse_range")
def _weighted_mse_range_meta(
    x: Tensor, importance: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    shape = check_weighted("weighted_mse_range", x, importance, axis, group, qmin, qmax, symmetric)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
