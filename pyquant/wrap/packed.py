# SPDX-License-Identifier: Apache-2.0
"""Packing: how a checkpoint stores the integers of a weight, several of them in a byte, and the grid that they are on.

It owns getting the integers and their format back. Which modules have such weights is stored.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.errors import ModelError, SpecError
from pyquant.qparams import QParams
from pyquant.spec import INT4, INT8, Granularity, PerAxis, PerTensor, QuantSpec

__all__ = ["Packing"]


@dataclass(frozen=True)
class Packing:
    """Integers of `bits` (2, 4 or 8) bits, rows of `width` of them.

    Below 8 bits a byte has 8 / bits integers, the first in its low bits, each plus 2**(bits - 1) so that it is not
    negative; a row begins with a new byte. 8 bits are an int8 each. Raises ModelError for other bits.
    """

    bits: int
    width: int

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ModelError(f"weights of {self.bits} bits are stored; pyquant reads 2, 4 and 8: load another model")

    def spec(self, granularity: Granularity) -> QuantSpec:
        """The format of these integers: that of a file, which has no 2-bit type (they are 4-bit ones there).

        Without a zero point, but not `symmetric`: the lowest integer, -8 or -128, is used.
        """
        return QuantSpec(INT8 if self.bits == 8 else INT4, symmetric=False, granularity=granularity)

    def grid(self, scale: Tensor, path: str) -> QParams:
        """The grid with `scale`, (rows,) or () for one scale. Raises ModelError for a scale that is none."""
        spec = self.spec(PerAxis(0) if scale.dim() else PerTensor())
        scale = scale.detach().float().contiguous()
        try:
            return QParams(spec, scale, torch.zeros_like(scale, dtype=torch.int32))
        except SpecError as error:
            raise ModelError(f"the stored scales of {path!r} are no grid: {error}; repair the checkpoint") from error

    def check(self, packed: Tensor, path: str) -> None:
        """Raise ModelError unless `packed` (..., bytes of a row) is of this form."""
        dtype = torch.int8 if self.bits == 8 else torch.uint8
        size = (self.width * self.bits + 7) // 8
        if packed.dtype != dtype or packed.shape[-1] != size:
            raise ModelError(
                f"{path!r} has {packed.dtype} rows of {packed.shape[-1]}, expected {dtype} of {size}: {self.width} "
                f"integers of {self.bits} bits; its number of bits is not that of the checkpoint"
            )

    def integers(self, packed: Tensor) -> Tensor:
        """(..., bytes of a row) -> int8 (..., width)."""
        if self.bits == 8:
            return packed
        offset, mask = 1 << (self.bits - 1), (1 << self.bits) - 1
        parts = [((packed >> shift) & mask).to(torch.int8) - offset for shift in range(0, 8, self.bits)]
        return torch.stack(parts, dim=-1).flatten(-2)[..., : self.width]
