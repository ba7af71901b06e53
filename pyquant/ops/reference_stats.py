# SPDX-License-Identifier: Apache-2.0
"""tensor_stats in plain torch operations; see reference.py.

It owns sums in the order that the CPU kernel defines: 32 lanes per block of 2048, then pairs of blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops.reference import minmax, wide

_LANES = 32
_BLOCK = 2048

Parts = tuple[Tensor, Tensor, Tensor]  # count, mean, sum of squared differences from it: float64, one each per block


def tensor_stats(x: Tensor) -> Tensor:
    _checks.check_dtype("tensor_stats", "x", x, *_checks.FLOATS)
    lo, hi = minmax(x, None, 0)
    flat = wide(x).flatten()
    finite = _blocks(torch.isfinite(flat))
    values = torch.where(finite, _blocks(flat), 0.0)
    count = finite.sum((-2, -1)).double()
    mean = torch.where(count > 0, _sums(values) / count, 0.0)
    difference = values - mean[:, None, None]
    parts = (count, mean, _sums(torch.where(finite, difference * difference, 0.0)))
    while len(parts[0]) > 1:
        parts = _merged(parts)
    total, center, squares = (part[0] if len(part) else part.new_zeros(()) for part in parts)
    some = total > 0
    found = torch.stack((center, wide(lo), wide(hi), (squares / total).sqrt()))
    return torch.cat((torch.where(some, found, torch.nan), (x.numel() - total).reshape(1)))


def _blocks(flat: Tensor) -> Tensor:
    """(blocks, steps, lanes), zeros at the end."""
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK))
    return padded.reshape(-1, _BLOCK // _LANES, _LANES)


def _sums(values: Tensor) -> Tensor:
    """The sum of each block: steps one after the other, lanes in pairs half a width apart."""
    sums = torch.zeros_like(values[:, 0])
    for step in values.unbind(1):
        sums = sums + step
    while sums.shape[-1] > 1:
        left, right = sums.chunk(2, -1)
        sums = left + right
    return sums[:, 0]


def _merged(parts: Parts) -> Parts:
    """Neighbouring blocks as one; the last of an odd number alone."""
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
