# SPDX-License-Identifier: Apache-2.0
"""The native operators as typed functions: observe, choose qparams, fake-quantize, quantize, pack.

Each calls one operator of the namespace `torch.ops.pyquant`, which torch.export keeps as one node. The same in plain
torch operations, for devices other than the CPU, is in reference.py; in Triton, for NVIDIA GPUs, in cuda.py.
"""

from __future__ import annotations

from pyquant.ops import backends as backends
from pyquant.ops.blocks import LENGTH as BLOCK_LENGTH
from pyquant.ops.blocks import block_bytes, dequantize_blocks, fake_quantize_blocks, quantize_blocks
from pyquant.ops.circle_write import circle_write
from pyquant.ops.fake_quantize import fake_quantize
from pyquant.ops.gptq import gptq_solve
from pyquant.ops.gram import gram_accumulate_
from pyquant.ops.hadamard import hadamard_
from pyquant.ops.histogram import histogram_mse_range, histogram_percentile, merge_histogram_, observe_histogram_
from pyquant.ops.int4 import pack_int4, unpack_int4
from pyquant.ops.minmax import minmax, observe_ema_, observe_minmax_
from pyquant.ops.pieces import ALL, PIECE, STEP, STORAGE, Grid, joined, quantize_pieces, row_slices, rows_of
from pyquant.ops.qparams import choose_qparams, fake_quantize_bias, quantize_bias
from pyquant.ops.quantize import dequantize, quantize
from pyquant.ops.range_search import mse_range, weighted_mse_range
from pyquant.ops.tensor_stats import tensor_stats
from pyquant.ops.threads import one_thread

__all__ = [
    "ALL",
    "BLOCK_LENGTH",
    "PIECE",
    "STEP",
    "STORAGE",
    "Grid",
    "block_bytes",
    "choose_qparams",
    "circle_write",
    "dequantize",
    "dequantize_blocks",
    "fake_quantize",
    "fake_quantize_bias",
    "fake_quantize_blocks",
    "gptq_solve",
    "gram_accumulate_",
    "hadamard_",
    "histogram_mse_range",
    "histogram_percentile",
    "joined",
    "merge_histogram_",
    "minmax",
    "mse_range",
    "observe_ema_",
    "observe_histogram_",
    "observe_minmax_",
    "one_thread",
    "pack_int4",
    "quantize",
    "quantize_bias",
    "quantize_blocks",
    "quantize_pieces",
    "row_slices",
    "rows_of",
    "tensor_stats",
    "unpack_int4",
    "weighted_mse_range",
]
