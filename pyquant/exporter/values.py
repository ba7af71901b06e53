# SPDX-License-Identifier: Apache-2.0
"""The value of an fx node while it is lowered: a tensor of the graph (Ref), or a constant (Const).

It owns when a constant's values are computed, and what the file has of them. When it becomes a tensor of the file is
decided in context.py, when its bytes are made in constant.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pyquant import ops
from pyquant.errors import ExportError
from pyquant.exporter.absent import Read
from pyquant.exporter.constant import LEAD, Constant
from pyquant.exporter.grid import BLOCKS, STORAGE, scales
from pyquant.exporter.plan import DTYPES, Location, Quant
from pyquant.ops.pieces import ALL

_KEEP = 1 << 16  # elements up to which a computed value is cached


@dataclass(frozen=True)
class Ref:
    """A tensor of the graph under construction."""

    index: int


@dataclass(frozen=True)
class Origin:
    """What a constant is made of: `key`, equal for equal data, and `rows(n)`, its first n rows without the others."""

    key: Hashable
    rows: Callable[[int], Tensor]

    def then(self, how: Hashable, change: Callable[[Tensor, int], Tensor]) -> Origin:
        """The same of `change(rows, n)`, which is named by `how`."""
        return Origin((self.key, how), lambda n: change(self.rows(n), n))


class Held:
    """A tensor of the model, read when a file is written. Raises ExportError when it was edited since."""

    def __init__(self, name: str, tensor: Tensor, touch: Callable[[Tensor], None] | None = None) -> None:
        self._name, self._tensor, self._touch = name, tensor, touch
        self._version = None if tensor.is_inference() else tensor._version  # an inference tensor counts no edits

    def __call__(self) -> Tensor:
        if self._version is not None and self._tensor._version != self._version:
            raise ExportError(
                f"'{self._name}' was edited in place after the graph was exported, and its constants are made when "
                "they are written; save the program before the model changes, or export it again"
            )
        if self._touch is not None:
            self._touch(self._tensor)
        return self._tensor

    @property
    def origin(self) -> Origin:
        t = self._tensor
        return Origin((t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, str(t.device)), lambda n: self()[:n])


class Elsewhere:
    """A parameter whose values are not here (absent.py), read each time that they are needed.

    Raises ExportError for a tensor that is not the parameter's.
    """

    def __init__(self, name: str, form: Tensor, read: Read) -> None:
        self._name, self._form, self._read = name, form, read

    def __call__(self, rows: slice = ALL) -> Tensor:
        tensor = self._read(rows).detach()
        seen, expected = ((t.dtype, tuple(t.shape)) for t in (tensor, ops.rows_of(self._form, rows)))
        if seen != expected or tensor.is_meta:
            given = "no values" if tensor.is_meta else f"{seen[0]} {seen[1]}"
            raise ExportError(f"reading '{self._name}' gave {given}, expected {expected[0]} {expected[1]}")
        return tensor

    @property
    def origin(self) -> Origin:
        return Origin(("read", self._form.data_ptr()), lambda n: self(slice(n)))


@dataclass(frozen=True)
class Stored:
    """Integers, one per element, and the grid (scale node, zero point node, axis, group) that they are on."""

    ints: Callable[[], Tensor]
    grid: tuple[object, ...]
    origin: Origin | None = None


@dataclass(eq=False)
class Const:
    """A value known at export time.

    `make` computes the eager (real) value. With `quant`, the integers are `make_ints()`, or the real value
    quantized; with `block`, a plan type of grid.BLOCKS, the file has the value's blocks. `make_packed` computes what
    the file has of 4-bit integers and blocks, without one byte (or float) for each value. `stored`: the integers that
    a float value was made of. `origin`: where what the file has of it comes from, where that is known. Values are
    computed on access, so that no float copy of a large weight stays in memory after its use, and nothing evaluates a
    large one before its bytes are written.
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
    origin: Origin | None = None
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

    def constant(self) -> tuple[Constant, str]:
        """What the file has of it, and its plan type."""
        plan_type, form = self._form()
        lead: Callable[[], Tensor] | None = None
        if self.origin is not None and self.shape and self.shape[0]:
            row = max(1, torch.Size(form[1]).numel() * form[0].itemsize // self.shape[0])
            rows = min(self.shape[0], -(-LEAD // row) + 1 & ~1)  # an even number: two 4-bit integers are a byte
            lead = partial(self.origin.rows, rows)
        key = None if self.origin is None else self.origin.key
        return Constant(*form, self._payload, key, lead), plan_type

    def _form(self) -> tuple[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The plan type, and the type and shape of _payload()."""
        if self.block is not None:
            width = self.shape[-1] // ops.BLOCK_LENGTH * ops.block_bytes(BLOCKS[self.block])
            return self.block, (torch.uint8, (*self.shape[:-1], width))
        if self.quant is not None:
            dtype = self.quant.dtype
            if dtype in ("int4", "uint4"):
                return dtype, (torch.uint8, ((self.numel + 1) // 2,))
            return dtype, (STORAGE[dtype], self.shape)
        if self.dtype not in DTYPES:
            raise ExportError(
                f"constant '{self.name}' is {self.dtype} at {self.where}; Circle has {', '.join(DTYPES.values())}"
            )
        return DTYPES[self.dtype], (self.dtype, self.shape)

    def _payload(self) -> Tensor:
        if self.make_packed is not None:
            return self.make_packed()
        if self.quant is not None:
            ints = self.ints().cpu().contiguous()
            return ops.pack_int4(ints) if self.quant.dtype in ("int4", "uint4") else ints
        if self.block is not None:
            return ops.quantize_blocks(self.value().float(), BLOCKS[self.block])
        return self.value()

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
