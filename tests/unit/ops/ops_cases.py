# SPDX-License-Identifier: Apache-2.0
"""What the operator tests share: inputs that round, saturate or break; a call of each operator; equality of bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pyquant import ops

ISAS = ("scalar", "portable", "avx2", "avx512")  # by the number that torch.ops.pyquant._isa takes
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF = torch.inf
_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Granularity:
    name: str
    axis: int | None
    group: int


GRANULARITIES = (
    Granularity("per-tensor", None, 0),
    Granularity("channel-first", 0, 0),
    Granularity("channel-middle", 1, 0),
    Granularity("channel-last", -1, 0),
    Granularity("group-last", 2, 4),
    Granularity("group-middle", 1, 5),
)
GRIDS = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "int8-symmetric": (-127, 127),
    "uint8": (0, 255),
    "int16": (-32767, 32767),
}
SHAPE = (3, 10, 12)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bit pattern: NaN, infinities, denormals, -0 and everything between."""
    bits = 8 * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator)
        .to(_WORD[dtype.itemsize])
        .view(dtype)
    )


def ordinary(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ties(shape: tuple[int, ...], dtype: torch.dtype, step: float) -> Tensor:
    """Halves of `step` and their neighbours."""
    n = torch.Size(shape).numel()
    halves = (torch.arange(n) - n // 2 + 0.5) * step
    toward = torch.tensor([INF, -INF, 0.0]).repeat(n)[:n]
    moved = torch.where(torch.arange(n) % 2 == 0, halves, torch.nextafter(halves, toward))
    return moved.reshape(shape).to(dtype)


def scales_for(x: Tensor, g: Granularity, grid: tuple[int, int], step: float = 0.05) -> tuple[Tensor, Tensor]:
    """Different valid scales and zero points for each place that has one."""
    shape = ops.minmax(torch.zeros(x.shape), g.axis, g.group)[0].shape
    place = torch.arange(torch.Size(shape).numel()).reshape(shape)
    qmin, qmax = grid
    return (step * (1 + place % 5)).float(), (qmin + (place * 7 + 3) % (qmax - qmin + 1)).int()


def integer_for(grid: tuple[int, int]) -> torch.dtype:
    return torch.int16 if grid[1] > 255 else torch.uint8 if grid[0] == 0 else torch.int8


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Equal in shape, dtype and every bit; NaN equals NaN."""
    if isinstance(actual, tuple | list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e)
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    word = _WORD[actual.element_size()]
    nan = actual.isnan() & expected.isnan()
    different = (actual.contiguous().view(word) != expected.contiguous().view(word)) & ~nan
    assert not different.any(), f"{int(different.sum())} differ: {actual[different][:5]} != {expected[different][:5]}"


def observer_state(scales: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    return torch.full(scales, INF), torch.full(scales, -INF), torch.zeros(2, dtype=torch.int64)


def histogram_state(bins: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(bins, dtype=torch.int64), torch.tensor([INF, -INF]), torch.zeros(2, dtype=torch.int64)


def filled_histogram(bins: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    counts, range_, count = histogram_state(bins)
    ops.observe_histogram_(counts, range_, count, ordinary((500,), seed=seed))
    return counts, range_


@dataclass(frozen=True)
class Call:
    """One call of an operator: its name and positional arguments."""

    name: str
    args: tuple[Any, ...]

    @property
    def op(self) -> Callable[..., Any]:
        return getattr(torch.ops.pyquant, self.name).default


def calls(dtype: torch.dtype, g: Granularity) -> list[Call]:
    """A call of every operator that takes a dtype or a granularity."""
    x = ordinary(SHAPE, dtype)
    grid = GRIDS["int8"]
    scale, zero_point = scales_for(x, g, grid)
    q = ops.quantize(x, scale, zero_point, g.axis, g.group, *grid, torch.int8)
    out = [
        Call("fake_quantize", (x, scale, zero_point, g.axis, g.group, *grid)),
        Call("fake_quantize_backward", (ordinary(SHAPE, dtype, 1), x, scale, zero_point, g.axis, g.group, *grid)),
        Call("quantize", (x, scale, zero_point, g.axis, g.group, *grid, torch.int8)),
        Call("dequantize", (q, scale, zero_point, g.axis, g.group)),
        Call("minmax", (x, g.axis, g.group)),
        Call("mse_range", (x, g.axis, g.group, -7, 7, True)),
    ]
    if g.group == 0:
        out.append(Call("observe_minmax_", (*observer_state(scale.shape), x, g.axis)))
        out.append(Call("observe_ema_", (*observer_state(scale.shape), x, g.axis, 0.9)))
    return out


def other_calls() -> list[Call]:
    """A call of every operator that takes neither."""
    bias = torch.tensor([1.0, -2.5, 0.3])
    counts, range_ = filled_histogram()
    more, more_range = filled_histogram(seed=1)
    return [
        *[Call("observe_histogram_", (*histogram_state(), ordinary((40,), d))) for d in DTYPES],
        Call("merge_histogram_", (counts, range_, more, more_range)),
        Call("histogram_percentile", (counts, range_, 1.0, 99.0)),
        Call("histogram_mse_range", (counts, range_, 0, 255, False)),
        Call("choose_qparams", (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]), -128, 127, False)),
        Call("quantize_bias", (bias, torch.tensor(0.1), 32)),
        Call("quantize_bias", (bias, torch.tensor([0.1, 0.2, 0.3]), 64)),
        Call("fake_quantize_bias", (bias, torch.tensor(0.1), 32)),
        *[Call("quantize_blocks", (ordinary((3, 64), d), bits)) for d in DTYPES for bits in (4, 8)],
        *[Call("fake_quantize_blocks", (ordinary((2, 1, 32), d), bits)) for d in DTYPES for bits in (4, 8)],
        *[Call("dequantize_blocks", (ops.quantize_blocks(ordinary((3, 64)), bits), bits)) for bits in (4, 8)],
        Call("pack_int4", (torch.tensor([1, -2, 3], dtype=torch.int8),)),
        *[Call("tensor_stats", (ordinary((7, 11), d),)) for d in DTYPES],
        *[Call("gram_accumulate_", (torch.zeros(5, 5), ordinary((2, 3, 5), d))) for d in DTYPES],
        Call("hadamard_", (ordinary((3, 2, 8)).double(), torch.ones(1, 1).double())),
        Call("hadamard_", (ordinary((3, 24)).double(), ordinary((3, 3)).double())),
        Call("gptq_solve", (ordinary((3, 4)), torch.eye(4) + 0.1, torch.ones(3), torch.zeros(3).int(), 0, -7, 7)),
        Call("gptq_solve", (ordinary((3, 4)), torch.eye(4), torch.ones(3, 2), torch.zeros(3, 2).int(), 2, -7, 7)),
        *[Call("weighted_mse_range", (ordinary((3, 4), d), torch.ones(4), 0, 0, -7, 7, True)) for d in DTYPES],
        Call("weighted_mse_range", (ordinary((3, 4)), torch.ones(4), 1, 2, 0, 15, False)),
        Call("unpack_int4", (torch.tensor([225, 3], dtype=torch.uint8), 3, True)),
    ]


def by_name(values: Any) -> Any:
    """pytest.mark.parametrize arguments with readable ids."""
    return [pytest.param(v, id=getattr(v, "name", None) or str(v).removeprefix("torch.")) for v in values]
