# SPDX-License-Identifier: Apache-2.0
"""tensor_stats against ATen's operators for the same numbers (aminmax, var_mean), sums in torch, and a copy."""

from __future__ import annotations

import torch

from benchmarks.rivals import Rivals, rivals, values
from pyquant import ops


def compared(x: torch.Tensor) -> Rivals:
    def by_hand() -> None:
        torch.aminmax(x)
        mean = x.sum(dtype=torch.float32) / x.numel()
        (torch.linalg.vector_norm(x, dtype=torch.float32) ** 2 / x.numel() - mean * mean).sqrt()

    calls: Rivals = {
        "pyquant": lambda: ops.tensor_stats(x),
        "aminmax and var_mean": lambda: (torch.aminmax(x), torch.var_mean(x, correction=0)),
        "aminmax, sum, norm": by_hand,
        "clone": x.clone,
    }
    mean, low, high, std, bad = calls["pyquant"]().tolist()
    exact = x.double()
    assert (low, high, bad) == (float(exact.min()), float(exact.max()), 0)
    assert abs(mean - float(exact.mean())) < 1e-6
    assert abs(std / float(exact.std(correction=0)) - 1) < 1e-6
    return calls


@rivals("pyquant", "aminmax and var_mean", "aminmax, sum, norm", "clone")
def bench_tensor_stats(elements: int) -> Rivals:
    return compared(values(elements))


@rivals("pyquant", "aminmax and var_mean", "aminmax, sum, norm", "clone")
def bench_tensor_stats_bfloat16(elements: int) -> Rivals:
    return compared(values(elements, torch.bfloat16))


@rivals("pyquant", "aminmax and var_mean", "aminmax, sum, norm", "clone")
def bench_tensor_stats_float16(elements: int) -> Rivals:
    return compared(values(elements, torch.float16))
