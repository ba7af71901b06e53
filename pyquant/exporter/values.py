# SPDX-License-Identifier: Apache-2.0
"""The value of an fx node while it is lowered: a tensor of the graph (Ref), or a constant (Const).

It owns when a constant is computed. When it becomes a tensor of the file is decided in context.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyquant import ops
from pyquant.exporter.grid import STORAGE, scales
from pyquant.exporter.plan import Location, Quant

_KEEP = 1 << 16  # elements up to which a computed value is cached


@dataclass(frozen=True)
class Ref:
    """A tensor of the graph under construction."""

    index: int


@dataclass(frozen=True)
class Stored:
    """Integers, one per element, and the grid (scale node, zero point node, axis, group) that they are on."""

    ints: Callable[[], Tensor]
    grid: tuple[object, ...]


@dataclass(eq=False)
class Const:
    """A value known at export time.

    `make` computes the eager (real) value. With `quant`, the integers are `make_ints()`, or the real value
    quantized; with `block`, a plan type of grid.BLOCKS, the file has the value's blocks. `make_packed` computes what
    the file has of 4-bit integers and blocks, without one byte (or float) for each value. `stored`: the integers that
    a float value was made of. Values are computed on access, so that no float copy of a large weight stays in memory
    after its use.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    where: Location
    quant: Quant | None = None
    make_ints: Callable[[], Tensor] | None = None
    make_packed: Callable[[], Tensor] | None = None
    block: str | None = None
    stored: Stored | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point

    def value(self) -> Tensor:
        """The eager value, on its grid when quantized."""
        return self._keep("value", self.make)

    def ints(self) -> Tensor:
        """The integers of a quantized constant, one per element (4 bit too)."""
        assert self.quant is not None, f"{self.name} is not quantized"
        return self._keep("ints", self.make_ints or self._quantized)

    def item(self) -> float:
        """The number of a one-element constant."""
        return float(self.value().reshape(()).item())

    def _quantized(self) -> Tensor:
        assert self.quant is not None
        return quantize_to(self.value(), self.quant)

    def _keep(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        if key in self._kept:
            return self._kept[key]
        value = make()
        if value.numel() <= _KEEP:
            self._kept[key] = value
        return value


Value = Ref | Const | float | int | bool | None


def quantize_to(value: Tensor, quant: Quant) -> Tensor:
    """The integers of `value` on `quant`, one per element (4 bit too)."""
    scale, zero_point = (t.to(value.device) for t in scales(quant))
    return integers(value, quant, scale, zero_point)


def integers(value: Tensor, quant: Quant, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The integers of `value` on `quant`, whose scale and zero_point are given as tensors; no float copy is made."""
    exact = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    value = value.detach() if exact else value.detach().float()
    if value.numel() > ops.PIECE and not value.is_contiguous():  # no contiguous copy of all of it
        grid = ops.Grid(scale, zero_point, quant.axis, 0, quant.qmin, quant.qmax, STORAGE[quant.dtype])
        pieces = ops.quantize_pieces(value, grid, packed=False)
        return ops.joined(pieces, value.numel(), grid.dtype).reshape(value.shape)
    return ops.quantize(value, scale, zero_point, quant.axis, 0, quant.qmin, quant.qmax, STORAGE[quant.dtype])


def packed(value: Tensor, quant: Quant, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The 4-bit integers of `value` as a file has them, uint8 (n / 2,); never one byte for each."""
    grid = ops.Grid(scale, zero_point, quant.axis, 0, quant.qmin, quant.qmax, STORAGE[quant.dtype])
    pieces = ops.quantize_pieces(value, grid, packed=True)
    return ops.joined(pieces, (value.numel() + 1) // 2, torch.uint8)


def blocks(value: Tensor, bits: int) -> Tensor:
    """`value` rounded to its blocks, as the eager model does, in the blocks of a file: uint8, some rows at a time."""

    def pieces() -> Iterator[Tensor]:
        for rows in ops.row_slices(value.shape):
            rounded = ops.fake_quantize_blocks(ops.rows_of(value.detach(), rows), bits)
            yield ops.quantize_blocks(rounded, bits).reshape(-1)

    width = value.shape[-1] // ops.BLOCK_LENGTH * ops.block_bytes(bits)
    shape = (*value.shape[:-1], width)
    return ops.joined(pieces(), torch.Size(shape).numel(), torch.uint8).reshape(shape)


def dequantize_from(ints: Tensor, quant: Quant) -> Tensor:
    """The real values of integers on `quant`."""
    scale, zero_point = (t.to(ints.device) for t in scales(quant))
    return ops.dequantize(ints, scale, zero_point, quant.axis, 0)
