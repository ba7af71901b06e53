# SPDX-License-Identifier: Apache-2.0
"""The native operators as typed functions: observe, choose qparams, fake-quantize, quantize, pack.

Each calls one operator of the namespace `torch.ops.pyquant`, which torch.export keeps as one node. The same in plain torch operations is `reference`.
"""

from __future__ import annotations

from pyquant.ops.fake_quantize import fake_quantize
from pyquant.ops.minmax import minmax, observe_ema_, observe_minmax_
from pyquant.ops.qparams import choose_qparams, fake_quantize_bias, quantize_bias
from pyquant.ops.quantize import dequantize, quantize

__all__ = [
    "choose_qparams",
    "dequantize",
    "fake_quantize",
    "fake_quantize_bias",
    "minmax",
    "observe_ema_",
    "observe_minmax_",
    "quantize",
    "quantize_bias",
]
