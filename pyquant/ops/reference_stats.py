# SPDX-License-Identifier: Apache-2.0
"""tensor_stats in plain torch operations; see reference.py.

It owns sums in the order that the CPU kernel defines: 32 lanes per block of 2048, then pairs of blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops.reference import minmax

_LANES = 32
_BLOCK = 2048
_LEAST, _MOST = 2.0**-30, 2.0**57  # magnitude of a block whose squares may be summed in float32

Parts = tuple[Tensor, Tensor, Tensor]  # count, mean, sum of squared differences from it: float64, one each per block


def tensor_stats(x: Tensor) -> Tensor:
    _checks.check_dtype("tensor_stats", "x", x, *_checks.FLOATS)
    x = x.cpu() if x.device.type == "mps" else x  # has no float64
    lo, hi = minmax(x, None, 0)
    flat = x.flatten().float()
    values, there = _blocks(flat), _blocks(torch.ones_like(flat, dtype=torch.bool))
    parts = _block_stats(values, there)
    while len(parts[0]) > 1:
        parts = _merged(parts)
    total, center, squares = (part[0] if len(part) else part.new_zeros(()) for part in parts)
    std = total.new_tensor(math.sqrt(float(squares / total)))  # torch's own sqrt of doubles is off by a bit on the CPU
    found = torch.stack((center, lo.double(), hi.double(), std))
    return torch.cat((torch.where(total > 0, found, torch.nan), (x.numel() - total).reshape(1)))


def _blocks(flat: Tensor) -> Tensor:
    """(blocks, steps, lanes), zeros at the end."""
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK))
    return padded.reshape(-1, _BLOCK // _LANES, _LANES)


def _block_stats(values: Tensor, there: Tensor) -> Parts:
    n = there.sum((1, 2))
    lo = torch.where(there, values, torch.inf).amin((1, 2))
    hi = torch.where(there, values, -torch.inf).amax((1, 2))
    total = _pairs(_lanes(values))
    magnitude = torch.maximum(-lo, hi)
    whole = total.isfinite()
    constant = whole & (lo == hi)
    ordinary = whole & (magnitude >= _LEAST) & (magnitude < _MOST)

    center = torch.where(ordinary, total / n.float(), 0.0)
    difference = torch.where(there, values - center[:, None, None], 0.0)
    sums, squares = _pairs(_lanes(difference).double()), _pairs(_lanes(difference * difference).double())
    rest = sums / n
    mean, squares = center.double() + rest, (squares - sums * rest).clamp(min=0.0)

    count, odd_mean, odd_squares = _non_finite_block_stats(values, there)
    mean = torch.where(constant, lo.double() + 0.0, torch.where(ordinary, mean, odd_mean))
    squares = torch.where(constant, 0.0, torch.where(ordinary, squares, odd_squares))
    return torch.where(whole, n.double(), count), mean, squares


def _non_finite_block_stats(values: Tensor, there: Tensor) -> Parts:
    """Only the finite values, in double."""
    finite = values.isfinite() & there
    wide = torch.where(finite, values, 0.0).double()
    count = finite.sum((1, 2)).double()
    mean = torch.where(count > 0, _pairs(_lanes(wide)) / count, 0.0)
    difference = torch.where(finite, wide - mean[:, None, None], 0.0)
    return count, mean, _pairs(_lanes(difference * difference))


def _lanes(values: Tensor) -> Tensor:
    """The sums of each block over every 32nd value, one after the other."""
    sums = torch.zeros_like(values[:, 0])
    for step in values.unbind(1):
        sums = sums + step
    return sums


def _pairs(sums: Tensor) -> Tensor:
    """The sum of the lanes, in pairs half a width apart."""
    while sums.shape[-1] > 1:
        left, right = sums.chunk(2, -1)
        sums = left + right
    return sums[:, 0]


def _merged(parts: Parts) -> Parts:
    """Neighbouring blocks as one; the last of an odd number stays alone."""
    if len(parts[0]) % 2:
        parts = tuple(torch.nn.functional.pad(part, (0, 1)) for part in parts)  # type: ignore[assignment]
    (n_a, mean_a, squares_a), (n_b, mean_b, squares_b) = ([part[side::2] for part in parts] for side in (0, 1))
    n = n_a + n_b
    delta = mean_b - mean_a
    mean = mean_a + delta * (n_b / n)
    squares = (squares_a + squares_b) + (delta * delta) * (n_a * n_b / n)
    only_a, only_b = n_b == 0, n_a == 0
    mean = torch.where(only_a, mean_a, torch.where(only_b, mean_b, mean))
    squares = torch.where(only_a, squares_a, torch.where(only_b, squares_b, squares))
    return n, mean, squares
