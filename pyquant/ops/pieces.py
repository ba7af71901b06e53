# SPDX-License-Identifier: Apache-2.0
"""Large tensors some rows at a time, so that no second copy of one exists: quantized, and packed.

It owns how a tensor and its scales are cut. Each piece goes through the operators of quantize.py, int4.py and
blocks.py; the numbers are those of the whole at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.ops._checks import FLOATS
from pyquant.ops.int4 import pack_int4
from pyquant.ops.quantize import quantize
from pyquant.ops.threads import one_thread

PIECE = 1 << 24  # elements of a piece
STEP = 1 << 20  # elements of a piece that is quantized and goes on to a file, for which its memory is used again
ALL = slice(None)
#: integer format -> the torch type of one of its integers (4 bit: one an element, until it is packed)
STORAGE = {"int4": torch.int8, "uint4": torch.uint8, "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}


def row_slices(shape: Sequence[int], multiple: int = 1, piece: int | None = None) -> Iterator[slice]:
    """The first dimension in slices of about `piece` (PIECE) elements, each a multiple of `multiple` rows but the last.

    ALL alone for a tensor that is small, which may have no dimension; see `rows_of`.
    """
    numel, piece = torch.Size(shape).numel(), piece or PIECE
    if numel <= piece:
        yield ALL
        return
    step = max(1, piece * shape[0] // numel // multiple) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def rows_of(x: Tensor, rows: slice) -> Tensor:
    """These rows of `x`, a view."""
    return x if rows == ALL else x[rows]


@dataclass(frozen=True)
class Grid:
    """The last arguments of quantize(x, ...), of a tensor that is quantized some rows at a time."""

    scale: Tensor
    zero_point: Tensor
    axis: int | None
    group: int
    qmin: int
    qmax: int
    dtype: torch.dtype

    def rows(self, shape: Sequence[int], piece: int | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, their scale, their zero_point) of a tensor of `shape`; an even number of rows in all but the last.
        `piece` is as of row_slices."""
        first = self.axis is not None and self.axis % len(shape) == 0
        for rows in row_slices(shape, 2 * self.group if first and self.group else 2, piece):
            if rows == ALL or not (first or self.group):
                yield rows, self.scale, self.zero_point
                continue
            size = self.group if first and self.group else 1
            own = slice(rows.start // size, -(-rows.stop // size))
            yield rows, self.scale[own], self.zero_point[own]


def quantize_pieces(x: Tensor, grid: Grid, *, packed: bool, alone: bool = False) -> Iterator[Tensor]:
    """The integers of `x` in order, flat, some rows at a time: as `quantize` gives them, or as `pack_int4` does.

    alone: by the calling thread, for a file that others hash and write meanwhile.
    """
    for rows, scale, zero_point in grid.rows(x.shape, min(STEP, PIECE)):
        values = rows_of(x, rows).detach()
        values = values if values.dtype in FLOATS else values.float()
        with one_thread() if alone else nullcontext():
            piece = quantize(values, scale, zero_point, grid.axis, grid.group, grid.qmin, grid.qmax, grid.dtype)
            piece = pack_int4(piece) if packed else piece
        yield piece.reshape(-1)


def joined(pieces: Iterable[Tensor], numel: int, dtype: torch.dtype) -> Tensor:
    """The flat pieces one after the other (numel,), on the CPU; one that is all there is, itself."""
    pieces = iter(pieces)
    first = next(pieces, torch.empty(0, dtype=dtype, device="cpu")).cpu()
    if first.numel() == numel:
        return first
    out = torch.empty(numel, dtype=dtype, device="cpu")
    end = 0
    for piece in itertools.chain([first], pieces):
        start, end = end, end + piece.numel()
        out[start:end] = piece
    assert end == numel, f"the pieces have {end} elements, expected {numel}"
    return out
