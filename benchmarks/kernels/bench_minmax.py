# SPDX-License-Identifier: Apache-2.0
"""The observers against torch.aminmax, which does not count non-finite values, and a copy. Target: <= 1.2x aminmax."""

from __future__ import annotations

import torch

from benchmarks.rivals import Rivals, rivals, values
from pyquant import ops


def state(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.full(shape, torch.inf), torch.full(shape, -torch.inf), torch.zeros(2, dtype=torch.int64)


def compared(x: torch.Tensor, axis: int | None) -> Rivals:
    other = {} if axis is None else {"dim": 1 - axis}
    lo, hi, count = state(*(() if axis is None else (x.shape[axis],)))
    calls: Rivals = {
        "pyquant": lambda: ops.observe_minmax_(lo, hi, count, x, axis),
        "aminmax": lambda: torch.aminmax(x, **other),
        "clone": x.clone,
    }
    calls["pyquant"]()
    expected = calls["aminmax"]()
    assert torch.equal(lo, expected.min.float())
    assert torch.equal(hi, expected.max.float())
    assert count.tolist() == [x.numel(), 0]
    return calls


@rivals("pyquant", "aminmax", "clone", short=True)
def bench_observe_minmax(elements: int) -> Rivals:
    return compared(values(elements), None)


@rivals("pyquant", "aminmax", "clone")
def bench_observe_minmax_bfloat16(elements: int) -> Rivals:
    return compared(values(elements, torch.bfloat16), None)


@rivals("pyquant", "aminmax", "clone")
def bench_observe_minmax_float16(elements: int) -> Rivals:
    return compared(values(elements, torch.float16), None)


@rivals("pyquant", "aminmax", "clone")
def bench_observe_minmax_per_channel(elements: int) -> Rivals:
    return compared(values(elements).view(elements // 1024, 1024), 0)


@rivals("pyquant", "aminmax", "clone")
def bench_observe_minmax_per_channel_last(elements: int) -> Rivals:
    return compared(values(elements).view(elements // 1024, 1024), 1)


def per_group(elements: int, group: int, dtype: torch.dtype) -> Rivals:
    x = values(elements, dtype).view(elements // 1024, 1024)
    view = x.view(-1, group)
    calls: Rivals = {
        "pyquant": lambda: ops.minmax(x, 1, group),
        "aminmax on a view": lambda: torch.aminmax(view, dim=1),
        "clone": x.clone,
    }
    lo, hi = calls["pyquant"]()
    expected = calls["aminmax on a view"]()
    assert torch.equal(lo.flatten(), expected.min.float())
    assert torch.equal(hi.flatten(), expected.max.float())
    return calls


@rivals("pyquant", "aminmax on a view", "clone")
def bench_minmax_per_group_of_16(elements: int) -> Rivals:
    return per_group(elements, 16, torch.float32)


@rivals("pyquant", "aminmax on a view", "clone", short=True)
def bench_minmax_per_group_of_32(elements: int) -> Rivals:
    return per_group(elements, 32, torch.float32)


@rivals("pyquant", "aminmax on a view", "clone")
def bench_minmax_per_group_of_128(elements: int) -> Rivals:
    return per_group(elements, 128, torch.float32)


@rivals("pyquant", "aminmax on a view", "clone")
def bench_minmax_per_group_of_32_bfloat16(elements: int) -> Rivals:
    return per_group(elements, 32, torch.bfloat16)


@rivals("pyquant", "aminmax on a view", "clone")
def bench_minmax_per_group_of_32_float16(elements: int) -> Rivals:
    return per_group(elements, 32, torch.float16)


@rivals("pyquant", "aminmax and lerp", "clone")
def bench_observe_ema(elements: int) -> Rivals:
    x, (lo, hi, count) = values(elements), state()
    low, high = torch.aminmax(x)

    def by_hand() -> None:
        a, b = torch.aminmax(x)
        low.lerp_(a, 0.1)
        high.lerp_(b, 0.1)

    calls: Rivals = {
        "pyquant": lambda: ops.observe_ema_(lo, hi, count, x, None, 0.9),
        "aminmax and lerp": by_hand,
        "clone": x.clone,
    }
    calls["pyquant"]()
    assert (lo, hi) == tuple(torch.aminmax(x))
    return calls
