# SPDX-License-Identifier: Apache-2.0
"""ggml's block formats Q4_0 (4 bits) and Q8_0 (8 bits): 32 values of a row with their own half-precision scale.

It owns the typed functions and their Meta kernels; in bytes, a block is its scale and then its integers. Formats with
separate scales are quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

LENGTH = 32
_quantize: Callable[..., Tensor] = native("quantize_blocks")
_dequantize: Callable[..., Tensor] = native("dequantize_blocks")
_fake: Callable[..., Tensor] = native("fake_quantize_blocks")


def block_bytes(bits: int) -> int:
    """Bytes of a block: 18 (4 bits) or 34 (8 bits)."""
    return 2 + LENGTH * bits // 8


def quantize_blocks(x: Tensor, bits: int) -> Tensor:
    """The blocks of x (..., K) float32, bfloat16 or float16 as uint8 (..., K / 32 * block_bytes(bits)), bits 4 or 8.

    4 bits: d = (the value of largest magnitude) / -8, q = min(15, trunc(x / d + 8.5)); 8 bits: d = max |x| / 127,
    q = x / d rounded half away from zero; by one multiplication with the float32 reciprocal of d, as in ggml.
    Raises OpArgumentError unless 32 divides K, and for NaN, Inf, and magnitudes that no half-precision scale reaches.
    """
    try:
        return _quantize(observed(x), bits)
    except RuntimeError as error:
        raise op_error(error) from None


def dequantize_blocks(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `quantize_blocks`: float32 (..., K), q times the half-precision scale."""
    try:
        return _dequantize(packed, bits)
    except RuntimeError as error:
        raise op_error(error) from None


def fake_quantize_blocks(x: Tensor, bits: int) -> Tensor:
    """`dequantize_blocks(quantize_blocks(x))` in x's type, contiguous.

    The gradient passes unchanged: no value is clipped.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _StraightThrough.apply(x, bits)  # type: ignore[no-untyped-call]
        return out
    try:
        return _fake(x, bits)
    except RuntimeError as error:
        raise op_error(error) from None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        try:
            return _fake(x, bits)
        except RuntimeError as error:
            raise op_error(error) from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


def check_blocks(op: str, name: str, tensor: Tensor, width: int, bits: int) -> None:
    if bits not in (4, 8):
        raise OpArgumentError(f"{op}: bits is {bits}; expected 4 (Q4_0) or 8 (Q8_0)")
    if tensor.dim() == 0 or tensor.shape[-1] % width != 0:
        raise OpArgumentError(
            f"{op}: {name} has shape {tuple(tensor.shape)}; its last dimension must be a multiple of {width}"
        )


@meta("quantize_blocks")
def _quantize_meta(x: Tensor, bits: int) -> Tensor:
    check_blocks("quantize_blocks", "x", x, LENGTH, bits)
    _checks.check_dtype("quantize_blocks", "x", x, *_checks.FLOATS)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // LENGTH * block_bytes(bits)), dtype=torch.uint8)


@meta("dequantize_blocks")
def _dequantize_meta(packed: Tensor, bits: int) -> Tensor:
    _checks.check_dtype("dequantize_blocks", "packed", packed, torch.uint8)
    check_blocks("dequantize_blocks", "packed", packed, block_bytes(bits), bits)
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] // block_bytes(bits) * LENGTH), dtype=torch.float32)


@meta("fake_quantize_blocks")
def _fake_meta(x: Tensor, bits: int) -> Tensor:
    check_blocks("fake_quantize_blocks", "x", x, LENGTH, bits)
    _checks.check_dtype("fake_quantize_blocks", "x", x, *_checks.FLOATS)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
