# SPDX-License-Identifier: Apache-2.0
"""Registers the reference implementations as the kernels of every backend but the CPU.

It owns which backends have them; the CPU has only its native kernels, so that a broken build cannot hide behind these.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from pyquant.ops import reference, reference_blocks, reference_gptq, reference_range, reference_search, reference_stats

BACKENDS = ("CUDA", "XPU", "MPS", "HPU", "MTIA", "PrivateUse1")
OPERATORS = {
    name: getattr(module, name)
    for module, names in (
        (
            reference,
            "fake_quantize fake_quantize_backward quantize dequantize minmax observe_minmax_ observe_ema_ "
            "choose_qparams quantize_bias fake_quantize_bias pack_int4 unpack_int4",
        ),
        (reference_search, "observe_histogram_ merge_histogram_ histogram_percentile histogram_mse_range"),
        (reference_range, "mse_range weighted_mse_range"),
        (reference_blocks, "quantize_blocks dequantize_blocks fake_quantize_blocks"),
        (reference_stats, "tensor_stats"),
        (reference_gptq, "gram_accumulate_ gptq_solve"),
    )
    for name in names.split()
}

_library: Any = cast("Any", torch.library).Library("pyquant", "IMPL")
for _name, _function in OPERATORS.items():
    for _backend in BACKENDS:
        _library.impl(_name, _function, _backend)
