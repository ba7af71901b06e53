# SPDX-License-Identifier: Apache-2.0
"""Weights chosen by second moments: the Gram matrix against a matrix product, GPTQ and its range against torch.

Targets: the Gram matrix not slower than addmm_, GPTQ of a 2048 x 6144 linear with its Cholesky factors in 20 s on two
cores. The sizes of that linear: `--kib 49152` (192 MiB / 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.rivals import Rivals, rivals, values
from pyquant import ops

BLOCK = 128


def gram_of(columns: int, rows: int, dtype: torch.dtype = torch.float32) -> Rivals:
    x = values(rows * columns, dtype).view(rows, columns)
    gram, other = torch.zeros(columns, columns), torch.zeros(columns, columns)

    def by_hand() -> Tensor:
        wide = x.float()
        return other.addmm_(wide.T, wide)

    calls: Rivals = {"pyquant": lambda: ops.gram_accumulate_(gram, x), "addmm_": by_hand, "clone": gram.clone}
    calls["pyquant"]()
    assert (gram - by_hand()).abs().max() <= rows * 2**-23 * float(gram.diagonal().max())
    return calls


@rivals("pyquant", "addmm_", "clone")
def bench_gram_of_576_columns(elements: int) -> Rivals:
    return gram_of(576, max(1, elements // 4096 * 4))


@rivals("pyquant", "addmm_", "clone")
def bench_gram_of_1536_columns(elements: int) -> Rivals:
    return gram_of(1536, max(1, elements // 4096))


@rivals("pyquant", "addmm_", "clone")
def bench_gram_of_1536_columns_bfloat16(elements: int) -> Rivals:
    return gram_of(1536, max(1, elements // 4096), torch.bfloat16)


@rivals("pyquant", "addmm_", "clone")
def bench_gram_of_6144_columns(elements: int) -> Rivals:
    columns = min(6144, elements // 64)
    return gram_of(columns, max(1, elements // 8192))


def linear(elements: int) -> tuple[Tensor, Tensor]:
    """A weight of three times as many columns as rows, and the upper Cholesky factor of an inverse."""
    rows = max(8, math.isqrt(elements // 3))
    columns = 3 * rows
    x = values(2 * columns * columns).view(2 * columns, columns)
    h = x.T @ x / columns
    # The factor of the inverse is the inverse of the reversed matrix's factor, reversed.
    lower = torch.linalg.cholesky(h.flip(0, 1))
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(columns), upper=True)
    return values(rows * columns).view(rows, columns), upper


def solve_in_torch(weight: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    """Blocks of 128 columns: column by column within, one matrix product for the rest."""
    w, steps = weight.clone(), torch.empty_like(weight)
    for begin in range(0, w.shape[1], BLOCK):
        end = min(begin + BLOCK, w.shape[1])
        block, errors = w[:, begin:end], torch.empty(len(w), end - begin)
        for i in range(end - begin):
            steps[:, begin + i] = (block[:, i] / scale).round_().clamp_(-7, 7)
            errors[:, i] = (block[:, i] - steps[:, begin + i] * scale) / factor[begin + i, begin + i]
            block[:, i + 1 :].addr_(errors[:, i], factor[begin + i, begin + i + 1 : end], alpha=-1)
        w[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1)
    return steps


@rivals("pyquant", "torch in blocks", "clone")
def bench_gptq_solve(elements: int) -> Rivals:
    weight, factor = linear(elements // 16)
    scale, zero_point = weight.abs().amax(1) / 7, torch.zeros(len(weight), dtype=torch.int32)
    calls: Rivals = {
        "pyquant": lambda: ops.gptq_solve(weight, factor, scale, zero_point, 0, -7, 7)[0],
        "torch in blocks": lambda: solve_in_torch(weight, factor, scale),
        "clone": weight.clone,
    }
    # A sum in another order turns a rounding here and there, and then what depends on it.
    assert (calls["pyquant"]() == calls["torch in blocks"]()).float().mean() > 0.95
    return calls


@rivals("pyquant", "80 x fake_quantize of ATen")
def bench_weighted_mse_range(elements: int) -> Rivals:
    """A sixteenth of the size: a search reads its input 80 times."""
    x = values(elements // 16).view(-1, 256)
    importance = values(256).square()

    def by_hand() -> Tensor:
        most = x.abs().amax(1)
        zero = torch.zeros(most.shape, dtype=torch.int32)
        best, least = most, torch.full_like(most, torch.inf)
        for candidate in range(80):
            scale = most * ((100 - candidate) / 100) / 7
            error = (x - torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -7, 7)).square_() @ importance
            best, least = torch.where(error < least, scale * 7, best), torch.minimum(error, least)
        return best

    calls: Rivals = {
        "pyquant": lambda: ops.weighted_mse_range(x, importance, 0, 0, -7, 7, True),
        "80 x fake_quantize of ATen": by_hand,
    }
    lo, hi = calls["pyquant"]()
    assert torch.isclose(torch.maximum(-lo, hi), by_hand(), rtol=1e-5).float().mean() > 0.99
    return calls
