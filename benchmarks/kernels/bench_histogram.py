# SPDX-License-Identifier: Apache-2.0
"""The histogram observer against torch.histc, the range searches against the same in torch operations."""

from __future__ import annotations

import torch

from benchmarks.rivals import Rivals, rivals, values
from pyquant import ops
from pyquant.ops import reference_search

BINS = 2048
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def histogram() -> State:
    return (
        torch.zeros(BINS, dtype=torch.int64),
        torch.tensor([torch.inf, -torch.inf]),
        torch.zeros(2, dtype=torch.int64),
    )


def compared(x: torch.Tensor) -> Rivals:
    counts, range_, count = histogram()
    wide = x.float()  # histc has no 16-bit floats
    calls: Rivals = {
        "pyquant": lambda: ops.observe_histogram_(counts, range_, count, x),
        "histc": lambda: torch.histc(wide, BINS),
        "clone": x.clone,
    }
    calls["pyquant"]()
    expected = torch.histc(wide, BINS, float(range_[0]), float(range_[1]))
    assert counts.sum() == expected.sum() == x.numel()
    assert (counts - expected).abs().sum() <= 1e-4 * x.numel()  # histc rounds at the edge of a bin
    return calls


@rivals("pyquant", "histc", "clone", short=True)
def bench_observe_histogram(elements: int) -> Rivals:
    return compared(values(elements))


@rivals("pyquant", "histc", "clone")
def bench_observe_histogram_float16(elements: int) -> Rivals:
    return compared(values(elements, torch.float16))


@rivals("pyquant", "aminmax, histc", "clone")
def bench_observe_histogram_relu(elements: int) -> Rivals:
    """Half of the values are equal: increments of one counter wait for each other."""
    x = values(elements).relu_()
    counts, range_, count = histogram()

    def by_hand() -> torch.Tensor:
        lo, hi = torch.aminmax(x)
        return torch.histc(x, BINS, float(lo), float(hi))

    calls: Rivals = {
        "pyquant": lambda: ops.observe_histogram_(counts, range_, count, x),
        "aminmax, histc": by_hand,
        "clone": x.clone,
    }
    calls["pyquant"]()
    assert counts.sum() == elements
    return calls


@rivals("pyquant", "torch operations", threads=(1,))
def bench_histogram_mse_range(elements: int) -> Rivals:
    counts, range_, count = histogram()
    ops.observe_histogram_(counts, range_, count, values(elements))
    calls: Rivals = {
        "pyquant": lambda: ops.histogram_mse_range(counts, range_, -128, 127, False),
        "torch operations": lambda: reference_search.histogram_mse_range(counts, range_, -128, 127, False),
    }
    assert calls["pyquant"]() == calls["torch operations"]()
    return calls


def searched(x: torch.Tensor) -> Rivals:
    wide = x.float()

    def by_hand() -> torch.Tensor:
        most = wide.abs().amax(1)
        zero = torch.zeros(most.shape, dtype=torch.int32)
        best, least = most, torch.full_like(most, torch.inf)
        for candidate in range(80):
            scale = most * ((100 - candidate) / 100) / 7
            error = (wide - torch.fake_quantize_per_channel_affine(wide, scale, zero, 0, -7, 7)).square_().sum(1)
            best, least = torch.where(error < least, scale * 7, best), torch.minimum(error, least)
        return best

    calls: Rivals = {
        "pyquant": lambda: ops.mse_range(x, 0, 0, -7, 7, True),
        "80 x fake_quantize of ATen": by_hand,
    }
    lo, hi = calls["pyquant"]()
    assert torch.isclose(torch.maximum(-lo, hi), by_hand(), rtol=1e-5).float().mean() > 0.99
    return calls


# A sixteenth of the size: a search reads its input 80 times.


@rivals("pyquant", "80 x fake_quantize of ATen")
def bench_mse_range(elements: int) -> Rivals:
    return searched(values(elements // 16).view(-1, 256))


@rivals("pyquant", "80 x fake_quantize of ATen")
def bench_mse_range_bfloat16(elements: int) -> Rivals:
    return searched(values(elements // 16, torch.bfloat16).view(-1, 256))


@rivals("pyquant", "80 x fake_quantize of ATen")
def bench_mse_range_float16(elements: int) -> Rivals:
    return searched(values(elements // 16, torch.float16).view(-1, 256))


@rivals("pyquant", "80 x fake_quantize of ATen")
def bench_mse_range_of_groups_of_32(elements: int) -> Rivals:
    return searched(values(elements // 16).view(-1, 32))
