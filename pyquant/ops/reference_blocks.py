# SPDX-License-Identifier: Apache-2.0
"""ggml's block formats in plain torch operations, for any device; equal to the CPU kernels bit for bit.

It owns this arithmetic. The formats' documentation and Meta kernels are blocks.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops.blocks import LENGTH, block_bytes, check_blocks
from pyquant.ops.reference import round_half_away

_HALF = LENGTH // 2


def quantize_blocks(x: Tensor, bits: int) -> Tensor:
    d, q = _encode("quantize_blocks", x, bits)
    if bits == 4:
        q = q[..., :_HALF] | (q[..., _HALF:] << 4)
    shape = (*x.shape[:-1], x.shape[-1] // LENGTH * block_bytes(bits))
    if x.numel() == 0:  # which has no strides to view by
        return x.new_empty(shape, dtype=torch.uint8)
    return torch.cat([d.contiguous().view(torch.uint8), q], dim=-1).reshape(shape)


def dequantize_blocks(packed: Tensor, bits: int) -> Tensor:
    _checks.check_dtype("dequantize_blocks", "packed", packed, torch.uint8)
    check_blocks("dequantize_blocks", "packed", packed, block_bytes(bits), bits)
    count = packed.shape[-1] // block_bytes(bits)
    if packed.numel() == 0:
        return packed.new_empty((*packed.shape[:-1], count * LENGTH), dtype=torch.float32)
    blocks = packed.reshape(*packed.shape[:-1], count, block_bytes(bits))
    d, q = blocks[..., :2].contiguous().view(torch.float16), blocks[..., 2:]
    if bits == 4:
        q = torch.cat([q & 15, q >> 4], dim=-1)
    return _decode(d, q, bits).reshape(*packed.shape[:-1], count * LENGTH)


def fake_quantize_blocks(x: Tensor, bits: int) -> Tensor:
    d, q = _encode("fake_quantize_blocks", x, bits)
    return _decode(d, q, bits).reshape(x.shape).to(x.dtype)


def _encode(op: str, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales (..., blocks, 1) in half precision and integers (..., blocks, 32) as uint8."""
    check_blocks(op, "x", x, LENGTH, bits)
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    v = x.float().reshape(*x.shape[:-1], x.shape[-1] // LENGTH, LENGTH)
    most = v.abs().amax(dim=-1, keepdim=True)
    if bits == 4:
        first = (v.abs() == most).to(torch.uint8).argmax(dim=-1, keepdim=True)
        d = torch.where(most > 0, v.gather(-1, first), most) / -8.0  # most may be 0 or NaN
    else:
        d = most / torch.full_like(most, 127.0)  # by a tensor: some devices multiply by a number's reciprocal
    half = d.half()
    if x.device.type == "cpu" and not bool(half.isfinite().all()):
        raise OpArgumentError(
            f"{op}: x has NaN, Inf, or a value too large for the half-precision scale of its block; expected "
            "magnitudes below 520000 (bits 4) or 8300000 (bits 8)"
        )
    inverse = 1.0 / d
    scaled = v * torch.where(inverse.isfinite(), inverse, 0.0)
    if bits == 4:
        return half, (scaled + 8.5).clamp(0, 15).to(torch.uint8)
    return half, round_half_away(scaled.clamp(-127, 127)).to(torch.int8).view(torch.uint8)


def _decode(d: Tensor, q: Tensor, bits: int) -> Tensor:
    integers = q.float() - 8 if bits == 4 else q.contiguous().view(torch.int8).float()
    return integers * d.float() + 0.0
