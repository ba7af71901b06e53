# SPDX-License-Identifier: Apache-2.0
"""StoredWeight: the integers of one weight with their scales and zero points, as a checkpoint of any format has them.

It owns their value, their grid, and their blocks where ggml's format holds them. Reading them is the format's file,
giving them to a tree decide.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyquant import ops
from pyquant.errors import ModelError, SpecError
from pyquant.qparams import QParams
from pyquant.spec import INT4, INT8, BlockSpec, Granularity, PerAxis, PerGroup, PerTensor, QuantSpec

__all__ = ["StoredWeight"]


@dataclass(frozen=True)
class StoredWeight:
    """`(integers - zero_point) * scale`.

    name: of its module in the checkpoint. bits: 2, 4 or 8. integers: int8 (rows, columns), signed ones of `bits`.
    scale: float32, zero_point: int32, both () for one scale, or (rows, groups), each group of which has equally many
    columns. order: the group of each column, (columns,), where they do not lie in a row (desc_act); else None.
    """

    name: str
    bits: int
    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool(self.scale.isfinite().all()):
            raise ModelError(f"the stored scales of {self.name!r} have NaN or Inf; repair the checkpoint")

    @property
    def groups(self) -> int:
        """Scales of a row; 1 where all of it has one."""
        return int(self.scale.shape[-1]) if self.scale.dim() else 1

    @property
    def size(self) -> int:
        """Columns of a group."""
        return int(self.integers.shape[-1]) // self.groups

    def value(self) -> Tensor:
        """float32 (rows, columns)."""
        if self.scale.dim() == 0 or self.groups == 1:
            return (self.integers.to(torch.float32) - self.zero_point) * self.scale
        if self.order is not None:
            return (self.integers.to(torch.float32) - self.zero_point[:, self.order]) * self.scale[:, self.order]
        parts = self.integers.to(torch.float32).reshape(-1, self.groups, self.size)
        parts = (parts - self.zero_point.unsqueeze(-1)) * self.scale.unsqueeze(-1)
        return parts.reshape(self.integers.shape)

    def positive(self) -> StoredWeight:
        """The same values with positive scales, as every grid here has.

        A negative one (AutoRound's full range) turns its integers around: `-q` where all of them are in the format,
        else `-1 - q` with the zero point `-1 - z`, which always are. A scale of 0 leaves only zeros.
        """
        if bool((self.scale > 0).all()):
            return self
        scale, zero_point, integers = self.scale, self.zero_point, self.integers
        parts = integers.reshape(-1) if scale.dim() == 0 else integers.reshape(-1, self.groups, self.size)
        if self.order is not None:
            raise ModelError(
                f"the weight of {self.name!r} has scales that are not positive, and columns in another order"
            )
        lowest = -(1 << (self.bits - 1))
        fits = (zero_point == 0) & (parts.amin(-1) > lowest)
        turned, none = (scale < 0).unsqueeze(-1), (scale == 0).unsqueeze(-1)
        plain = fits.unsqueeze(-1)
        parts = torch.where(turned, torch.where(plain, -parts, -1 - parts), parts)
        zeros = torch.where(scale < 0, torch.where(fits, zero_point, -1 - zero_point), zero_point)
        parts = torch.where(none, zeros.unsqueeze(-1).to(torch.int8), parts)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale.abs())
        return replace(self, integers=parts.reshape(integers.shape), scale=scale, zero_point=zeros)

    def spec(self) -> QuantSpec:
        """The format of a file for these integers: 2 bits are 4-bit ones there. Not `symmetric`, since the lowest
        integer, -8 or -128, is used."""
        granularity: Granularity = PerTensor()
        if self.scale.dim():
            granularity = PerAxis(0) if self.groups == 1 else PerGroup(1, self.size)
        return QuantSpec(INT8 if self.bits == 8 else INT4, symmetric=False, granularity=granularity)

    def qparams(self) -> QParams:
        """The grid, with scales that are positive. Raises ModelError for numbers that are none."""
        scale, zero_point = self.scale, self.zero_point.to(torch.int32)
        if scale.dim() and self.groups == 1:
            scale, zero_point = scale[:, 0], zero_point[:, 0]
        try:
            return QParams(self.spec(), scale.contiguous(), zero_point.contiguous())
        except SpecError as error:
            raise ModelError(
                f"the stored scales of {self.name!r} are no grid: {error}; repair the checkpoint"
            ) from error

    def block_spec(self) -> BlockSpec:
        """The block format that has these integers."""
        return BlockSpec("q8_0" if self.bits == 8 else "q4_0")

    def blocks(self) -> Tensor | str:
        """The weight in ggml's blocks, each with the scale of its group: uint8 (rows, bytes) as `ops.quantize_blocks`
        has them; or why they cannot hold it exactly. A scale may be negative there."""
        rows, columns = self.integers.shape
        if self.order is not None:
            return "its groups of columns lie in another order (act-order)"
        if columns % ops.BLOCK_LENGTH or self.size % ops.BLOCK_LENGTH:
            return f"a block has {ops.BLOCK_LENGTH} columns with one scale, and its groups have {self.size}"
        if bool((self.zero_point != 0).any()):
            return "blocks have no zero points"
        half = self.scale.half()
        if not torch.equal(half.float(), self.scale):
            return "blocks have half-precision scales, and its own are finer"
        counts = (rows, columns // ops.BLOCK_LENGTH)
        parts = half.expand(rows, 1) if half.dim() == 0 else half
        scales = (
            parts.repeat_interleave(counts[1] // parts.shape[1], dim=1).unsqueeze(-1).contiguous().view(torch.uint8)
        )
        integers = self.integers.reshape(*counts, ops.BLOCK_LENGTH)
        if self.bits != 8:  # a byte has the values j and j + 16
            low, high = ((integers + 8).view(torch.uint8)).chunk(2, dim=-1)
            integers = low | (high << 4)
        return torch.cat([scales, integers.view(torch.uint8)], dim=-1).reshape(rows, -1)
