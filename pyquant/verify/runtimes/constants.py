# SPDX-License-Identifier: Apache-2.0
"""The bytes of a tensor of a Circle file as real numbers.

It owns decoding: integers with scales, packed 4-bit integers, 16-bit floats and blocks of ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyquant import circle, ops
from pyquant.verify.runtimes._inputs import Array

_GGML = {"ggml_q4_0": 4, "ggml_q8_0": 8}


def value_of(tensor: circle.Tensor, data: Any, shape: tuple[int, ...]) -> Array:
    """float32 of `shape` for a quantized tensor, GGML blocks and 16-bit floats; else the tensor's own dtype."""
    raw = np.frombuffer(data, np.uint8)
    count = int(np.prod(shape, dtype=np.int64))
    if tensor.dtype in ("int4", "uint4"):
        packed = torch.from_numpy(raw.copy())
        integers = ops.unpack_int4(packed, count, tensor.dtype == "int4").reshape(shape)
    elif tensor.dtype in _GGML:
        blocks = torch.from_numpy(raw.copy())
        rows = ops.dequantize_blocks(blocks.reshape(*shape[:-1], -1), _GGML[tensor.dtype])
        return np.asarray(rows.numpy())
    elif tensor.dtype == "bfloat16":
        return np.asarray(torch.from_numpy(raw.copy()).view(torch.bfloat16).float().reshape(shape).numpy())
    elif tensor.dtype == "float16":
        return np.asarray(raw.view(np.float16).astype(np.float32).reshape(shape))
    else:
        array = raw.view(np.dtype(tensor.dtype)).reshape(shape)
        if not tensor.quantized:
            return np.array(array)
        integers = torch.from_numpy(array.copy())
    if not tensor.quantized:
        return np.asarray(integers.numpy())
    scale = np.asarray(tensor.scale, np.float32)
    zero = np.asarray(tensor.zero_point, np.int64)
    if scale.size > 1:
        sizes = [1] * len(shape)
        sizes[tensor.axis] = scale.size
        scale, zero = scale.reshape(sizes), zero.reshape(sizes)
    whole = integers.numpy().astype(np.int64) - zero
    return np.asarray(whole.astype(np.float32) * scale, np.float32)
