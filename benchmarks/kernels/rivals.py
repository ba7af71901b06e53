# SPDX-License-Identifier: Apache-2.0
"""`@rivals(...)`: makes one benchmark per rival and number of threads out of a function that names the rivals.

It owns how a kernel is measured, and the check of every result before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Rivals = dict[str, Callable[[], Any]]


def rivals(*names: str, threads: tuple[int, ...] = (1, 2)) -> Callable[[Callable[[int], Rivals]], Callable[..., None]]:
    """Decorates `bench_x(elements) -> {name: call}`, whose first name is pyquant's. The function checks the results."""

    def decorate(make: Callable[[int], Rivals]) -> Callable[..., None]:
        @pytest.mark.parametrize("threads", threads, ids=lambda t: f"{t}-threads")
        @pytest.mark.parametrize("rival", names)
        def bench(benchmark: Any, elements: int, rival: str, threads: int) -> None:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                calls = make(elements)
                assert tuple(calls) == names, f"{make.__name__} has {list(calls)}, declared are {list(names)}"
                benchmark.group = f"{make.__name__.removeprefix('bench_')}, {threads} thread{'s' * (threads > 1)}"
                benchmark.extra_info["rival"] = rival
                benchmark(calls[rival])
            finally:
                torch.set_num_threads(before)

        bench.__name__, bench.__doc__ = make.__name__, make.__doc__
        return bench

    return decorate


def values(elements: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(0)).to(dtype)


def assert_near(y: torch.Tensor, other: torch.Tensor, step: float) -> None:
    """ATen multiplies by 1 / scale and rounds halves to even: differences of one step, and few."""
    difference = (y.float() - other.float()).abs()
    exact = y.dtype in (torch.float32, torch.int8)  # 16-bit floats have few bits: halves are frequent, results rounded
    assert difference.max() <= (1.02 if exact else 1.3) * step
    assert (difference > 0).float().mean() < (1e-3 if exact else 0.02)
