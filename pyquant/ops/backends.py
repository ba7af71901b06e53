# SPDX-License-Identifier: Apache-2.0
"""Registers kernels of every backend but the CPU: Triton's on NVIDIA GPUs where it is installed, else torch operations.

It owns which backend has which, decided once, at import, from what is installed; KERNELS shows and `summary` says it.
The CPU has only its native kernels, so that a broken build cannot hide behind these.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, cast

import torch

from pyquant.ops import (
    cuda,
    reference,
    reference_blocks,
    reference_gptq,
    reference_range,
    reference_search,
    reference_stats,
)

BACKENDS = ("CUDA", "XPU", "MPS", "HPU", "MTIA", "PrivateUse1")
OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module, names in (
        (
            reference,
            "fake_quantize fake_quantize_backward quantize dequantize minmax observe_minmax_ observe_ema_ "
            "choose_qparams quantize_bias fake_quantize_bias pack_int4 unpack_int4 hadamard_",
        ),
        (reference_search, "observe_histogram_ merge_histogram_ histogram_percentile histogram_mse_range"),
        (reference_range, "mse_range weighted_mse_range"),
        (reference_blocks, "quantize_blocks dequantize_blocks fake_quantize_blocks"),
        (reference_stats, "tensor_stats"),
        (reference_gptq, "gram_accumulate_ gptq_solve"),
    )
    for name in names.split()
}


def kernels(backend: str, triton: bool, rocm: bool) -> dict[str, Callable[..., Any]]:
    """The function of each operator for a backend of BACKENDS; `triton`: it is installed.

    AMD's GPUs (torch built for ROCm, whose backend is named CUDA too) run torch operations: what triton_kernels.py says
    of rounding is about NVIDIA's instructions.
    """
    return {**OPERATORS, **cuda.OPERATORS} if backend == "CUDA" and triton and not rocm else OPERATORS


#: backend -> operator -> the function that computes it there
KERNELS = {
    backend: kernels(backend, importlib.util.find_spec("triton") is not None, torch.version.hip is not None)
    for backend in BACKENDS
}


def summary(device: torch.device) -> str:
    """Which kernels the operators have on a device, in words, for a person who waits for them."""
    if device.type != "cuda":
        return "native kernels" if device.type == "cpu" else "torch operations"
    if KERNELS["CUDA"] is not OPERATORS:
        return "Triton kernels for rounding, ranges and histograms, torch operations for the rest"
    why = "ROCm" if torch.version.hip is not None else "no triton here; `pip install triton` brings faster kernels"
    return f"torch operations ({why})"


_library: Any = cast("Any", torch.library).Library("pyquant", "IMPL")
for _backend, _kernels in KERNELS.items():
    for _name, _function in _kernels.items():
        _library.impl(_name, _function, _backend)
