# SPDX-License-Identifier: Apache-2.0
"""Integers of 2, 4 or 8 bits in 32-bit words, the first in a word's lowest bits: what GPTQ, AutoRound and
compressed-tensors have in common.

It owns getting them out. Which axis is packed, and which tensors have such words, is the format's file.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BITS", "add_one", "unpack", "words"]

#: widths that are read; a word has a whole number of each
BITS = (2, 4, 8)


def words(count: int, bits: int) -> int:
    """How many words hold `count` integers."""
    return -(-count * bits // 32)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """int32 (rows, words) -> int8 (rows, count): each stored number, which is not negative, less 2**(bits - 1)."""
    octets = packed.contiguous().view(torch.uint8)  # little-endian, as every machine that torch supports
    half, mask = 1 << (bits - 1), (1 << bits) - 1
    if bits == 8:
        return (octets ^ half).view(torch.int8)[:, :count].contiguous()
    parts = [((octets >> shift) & mask).to(torch.int8) - half for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)[:, :count].contiguous()


def add_one(packed: Tensor, bits: int) -> Tensor:
    """One more in every integer of the words, as GPTQModel does it: by one addition, which carries over from a field
    that was full, so that it undoes the subtraction that wrote them."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return packed + (ones if ones < 1 << 31 else ones - (1 << 32))
