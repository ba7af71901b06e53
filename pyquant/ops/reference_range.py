# SPDX-License-Identifier: Apache-2.0
"""The range searches over values, mse_range and weighted_mse_range, in plain torch operations; see reference.py.

It owns their sums of errors. Those over a histogram are in reference_search.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops.range_search import check_weighted
from pyquant.ops.reference import choose_qparams, fake_quantize, minmax, split_groups
from pyquant.ops.reference_search import in_lanes, sequential_sum

_LANES = 32
_BLOCK = 1024
_CHUNK = 65536
_CANDIDATES = 80


def mse_range(x: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    op = "mse_range"
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    _checks.check_search_grid(op, qmin, qmax, symmetric)
    lo, hi = minmax(x, axis, group)
    if x.numel() == 0:
        return lo, hi
    runs = _by_scale(x, axis, group).float()
    return _least(lo, hi, lambda scale, zero: _error(_squares(runs, scale, zero, qmin, qmax)), qmin, qmax, symmetric)


def weighted_mse_range(
    x: Tensor, importance: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    op = "weighted_mse_range"
    check_weighted(op, x, importance, axis, group, qmin, qmax, symmetric)
    if x.device.type == "cpu":
        for index, value in enumerate(importance.tolist()):
            if not 0 <= value < math.inf:
                raise OpArgumentError(
                    f"{op}: importance number {index} is {value:g}; every importance must be finite and not negative"
                )
    lo, hi = minmax(x, axis, group)
    if x.numel() == 0:
        return lo, hi
    runs = x.float().reshape(-1, group or x.shape[1])
    _, exponent = math.frexp(float(importance.max()))
    weights = (importance.cpu().double() * 2.0**-exponent).float().to(x.device)
    weights = weights.reshape(-1, runs.shape[1]).repeat(x.shape[0], 1)

    def error(scale: Tensor, zero_point: Tensor) -> Tensor:
        if axis is None:
            scale, zero_point = scale.expand(len(runs)), zero_point.expand(len(runs))
        of_runs = _error(weights * _squares(runs, scale, zero_point, qmin, qmax))
        return sequential_sum(of_runs).reshape(1) if axis is None else of_runs

    return _least(lo, hi, error, qmin, qmax, symmetric)


def _least(
    lo: Tensor, hi: Tensor, error_of: Callable[[Tensor, Tensor], Tensor], qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Of the parts of each range the first with the least error_of(scales, zero points), float64 on the CPU."""
    low, high = lo.flatten(), hi.flatten()
    some = low <= high
    low, high = torch.where(some, low, 0.0), torch.where(some, high, 0.0)
    best_lo, best_hi, least = low, high, torch.full_like(low, torch.inf, dtype=torch.float64, device="cpu")
    for candidate in range(_CANDIDATES):
        part = torch.tensor((100 - candidate), dtype=torch.float32, device=lo.device) / 100.0
        error = error_of(*choose_qparams(low * part, high * part, qmin, qmax, symmetric))
        better = (error < least).to(lo.device)
        best_lo, best_hi = torch.where(better, low * part, best_lo), torch.where(better, high * part, best_hi)
        least = torch.where(error < least, error, least)
    best_lo, best_hi = torch.where(some, best_lo, torch.inf), torch.where(some, best_hi, -torch.inf)
    return best_lo.reshape(lo.shape), best_hi.reshape(hi.shape)


def _by_scale(x: Tensor, axis: int | None, group: int) -> Tensor:
    """x as (scales, elements of each), scales in their order."""
    if axis is None:
        return x.reshape(1, -1)
    at = axis % x.dim()
    if group:
        return split_groups(x, at, group).movedim(at + 1, -1).reshape(-1, group)
    return x.movedim(at, 0).reshape(x.shape[at], -1)


def _squares(runs: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    difference = runs - fake_quantize(runs, scale, zero_point, 0, 0, qmin, qmax)
    return difference * difference


def _error(squares: Tensor) -> Tensor:
    """Sum of each row, float64 on the CPU: 32 float32 lanes per block of 1024, then blocks, then chunks."""
    blocks = in_lanes(squares, _BLOCK) if squares.shape[1] > _BLOCK else squares.unsqueeze(1)
    steps = in_lanes(blocks, _LANES)
    lanes = torch.zeros_like(steps[..., 0, :])
    for step in steps.unbind(-2):
        lanes = lanes + step
    sums = sequential_sum(lanes.cpu().double())
    return sequential_sum(sequential_sum(in_lanes(sums, _CHUNK // _BLOCK)))
