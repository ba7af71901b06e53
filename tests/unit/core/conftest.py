# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the core's tests: toy models, data for them, and a counter of native calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel
from torch import Tensor

import pyquant
from pyquant import Policy, ops
from pyquant.wrap import QModule


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def block() -> ToyBlock:
    return ToyBlock().eval()


@pytest.fixture
def model() -> ToyModel:
    return ToyModel().eval()


@pytest.fixture
def xs() -> list[Tensor]:
    return [torch.randn(3, 8) for _ in range(4)]


@pytest.fixture
def converted(block: ToyBlock, xs: list[Tensor]) -> QModule:
    q = pyquant.prepare(block, Policy.preset("w8a8"))
    pyquant.calibrate(q, xs, progress=False)
    pyquant.convert(q)
    return q


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each function of pyquant.ops was called since the test began (or since `calls.clear()`)."""
    seen: Counter[str] = Counter()

    def counted(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return fn(*args, **kwargs)

        return call

    for name in ops.__all__:
        if callable(getattr(ops, name)):
            monkeypatch.setattr(ops, name, counted(name, getattr(ops, name)))
    return seen
