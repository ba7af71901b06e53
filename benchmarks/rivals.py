# SPDX-License-Identifier: Apache-2.0
"""`@rivals(...)`: makes one benchmark per number of threads out of a function that names the rivals.

It owns how a race is run: the rivals take turns with pyquant in one process, so that what the machine does meanwhile
meets all of them, and a ratio is the median over the turns. How results are shown is conftest.py, what may not get
worse is compare.py.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import pytest
import torch

Rivals = dict[str, Callable[[], Any]]
Make = Callable[..., Rivals]

_SHORTEST = 3e-4  # seconds that a turn takes at least: faster calls are repeated


def rivals(
    *names: str, threads: tuple[int, ...] = (1, 2), short: bool = False, seconds: float = 2.0
) -> Callable[[Make], Callable[..., None]]:
    """Decorates `bench_x(elements) -> {name: call}`, whose first name is pyquant's. The function checks the results.

    It may take no argument where its size is fixed. short: it also runs in the short form (`--short`), on the first
    number of threads. seconds: of one race; at least five turns are taken.
    """
    first = threads[0]

    def decorate(make: Make) -> Callable[..., None]:
        sized = make.__code__.co_argcount > 0

        @pytest.mark.parametrize("threads", [_threads(count, short and count == first) for count in threads])
        def bench(benchmark: Any, elements: int, threads: int) -> None:
            with torch_threads(threads):
                calls = make(elements) if sized else make()
                assert tuple(calls) == names, f"{make.__name__} has {list(calls)}, declared are {list(names)}"
                benchmark.group = f"{make.__name__.removeprefix('bench_')}, {threads} thread{'s' * (threads > 1)}"
                benchmark.extra_info.update(short=short and threads == first, threads=threads)
                race(benchmark, calls, seconds)

        bench.__name__, bench.__doc__, bench.__module__ = make.__name__, make.__doc__, make.__module__
        return bench

    return decorate


def _threads(count: int, short: bool) -> Any:
    return pytest.param(count, marks=[pytest.mark.short] if short else [], id=f"{count}-threads")


def race(benchmark: Any, calls: Rivals, seconds: float) -> None:
    """Time the first of `calls` through `benchmark`, with a turn of each other one before each of its turns.

    `benchmark.extra_info` then has "own", the first's name, and "rivals": of each other one, how many times pyquant's
    time it takes (median, first and third quarter over the turns) and its median seconds.
    """
    own, *others = calls
    if benchmark.disabled:  # each once
        for name in others:
            calls[name]()
        benchmark(calls[own])
        return
    repeated = {name: _repeated(call) for name, call in calls.items()}
    turns: dict[str, list[float]] = {name: [] for name in others}

    def others_turn() -> None:
        for name in others:
            turns[name].append(_clock(repeated[name][0]) / repeated[name][1])

    once = sum(_clock(call) for call, _ in repeated.values())
    rounds = max(5, min(400, math.ceil(seconds / once)))
    call, count = repeated[own]
    gc.collect()
    benchmark.pedantic(call, setup=others_turn, rounds=rounds, warmup_rounds=1)
    mine = [each / count for each in benchmark.stats.stats.data]
    ratios = {}
    for name in others:
        theirs = turns[name][-len(mine) :]
        pairs = [other / self for other, self in zip(theirs, mine, strict=True)]
        low, _, high = quantiles(pairs, n=4)
        ratios[name] = {"ratio": median(pairs), "low": low, "high": high, "seconds": median(theirs)}
    benchmark.extra_info.update(own=own, seconds=median(mine), rivals=ratios)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's threads for what is inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _repeated(call: Callable[[], Any]) -> tuple[Callable[[], Any], int]:
    """`call`, so many times that a turn is long enough for the clock, and how many."""
    call()
    took = _clock(call)
    count = max(1, math.ceil(_SHORTEST / max(took, 1e-7)))
    if count == 1:
        return call, 1

    def several() -> None:
        for _ in range(count):
            call()

    return several, count


def _clock(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def values(elements: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(0)).to(dtype)


def assert_near(y: torch.Tensor, other: torch.Tensor, step: float) -> None:
    """ATen multiplies by 1 / scale and rounds halves to even: differences of one step, and few."""
    difference = (y.float() - other.float()).abs()
    exact = y.dtype in (torch.float32, torch.int8)  # 16-bit floats have few bits: halves are frequent, results rounded
    assert difference.max() <= (1.02 if exact else 1.3) * step
    assert (difference > 0).float().mean() < (1e-3 if exact else 0.02)
