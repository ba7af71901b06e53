# SPDX-License-Identifier: Apache-2.0
"""Two 4-bit integers in a byte, as Circle files hold them: low half first.

It owns the typed functions and their Meta kernels; where the integers come from is quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, op_error

_pack: Callable[..., Tensor] = native("pack_int4")
_unpack: Callable[..., Tensor] = native("unpack_int4")


def pack_int4(q: Tensor) -> Tensor:
    """uint8 ((n + 1) // 2,) of the n elements of q in order; element 2i in the low half of byte i, 0 after an odd end.

    q: int8 in [-8, 7] or uint8 in [0, 15], any shape. Raises OpArgumentError for a value that needs more bits.
    """
    try:
        return _pack(q)
    except RuntimeError as error:
        raise op_error(error) from None


def unpack_int4(packed: Tensor, numel: int, signed: bool) -> Tensor:
    """The inverse of `pack_int4`: (numel,), int8 if signed, else uint8."""
    try:
        return _unpack(packed, numel, signed)
    except RuntimeError as error:
        raise op_error(error) from None


def check_packed(op: str, packed: Tensor, numel: int) -> None:
    _checks.check_dtype(op, "packed", packed, torch.uint8)
    if numel < 0 or packed.numel() != (numel + 1) // 2:
        raise OpArgumentError(
            f"{op}: packed has {packed.numel()} bytes, but {numel} 4-bit integers take {(numel + 1) // 2}"
        )


@meta("pack_int4")
def _pack_meta(q: Tensor) -> Tensor:
    _checks.check_dtype("pack_int4", "q", q, torch.int8, torch.uint8)
    return q.new_empty(((q.numel() + 1) // 2,), dtype=torch.uint8)


@meta("unpack_int4")
def _unpack_meta(packed: Tensor, numel: int, signed: bool) -> Tensor:
    check_packed("unpack_int4", packed, numel)
    return packed.new_empty((numel,), dtype=torch.int8 if signed else torch.uint8)
