# SPDX-License-Identifier: Apache-2.0
"""What a lowering function may do: look up values, make constants, and compute, move, join or convert values, with
their grids.

It owns the one rule of mixed policies: an operator is quantized when its result has a grid and all its operands have
one; otherwise it is float, between DEQUANTIZE and QUANTIZE. Which Circle operator an ATen operator is, is lower/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from pyquant.errors import ExportError
from pyquant.exporter.builder import Builder
from pyquant.exporter.fold import Folded
from pyquant.exporter.grid import exact_grid, widened, widest
from pyquant.exporter.plan import DTYPES, FLOATS, Location, Quant
from pyquant.exporter.propagate import Grids
from pyquant.exporter.registry import target_of
from pyquant.exporter.tracing import Traced, location_of, static_shape
from pyquant.exporter.values import Const, Ref, Value, dequantize_from, quantize_to


class Context:
    """The state of one lowering, and what lowering functions call.

    `node` is the fx node that is lowered now, `want` the grid that its result must have.
    """

    def __init__(self, traced: Traced, folded: Folded, grids: Grids, builder: Builder) -> None:
        self.traced, self.grids, self.build = traced, grids, builder
        self.values: dict[Node, Any] = dict(folded)
        self.node: Node
        self.where = Location()
        self._constants: dict[tuple[object, ...], Const] = {}  # scalars and shapes by kind and contents
        self._conversions: dict[tuple[object, ...], Ref] = {}  # results of QUANTIZE and DEQUANTIZE

    def at(self, node: Node) -> None:
        """Make `node` the one that is lowered."""
        self.node, self.where = node, location_of(node)

    # ---- what is known of values

    @property
    def want(self) -> Quant | None:
        return self.grids.wanted.get(self.node)

    @property
    def fake(self) -> torch.Tensor:
        """Shape and type of the node's value (of its first part, when it has several)."""
        value = self.node.meta["val"]
        return value[0] if isinstance(value, list | tuple) else value  # type: ignore[no-any-return]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return static_shape(self.fake, self.node)

    @property
    def out_dtype(self) -> str:
        dtype = self.fake.dtype
        if dtype not in DTYPES:
            raise ExportError(f"{self} gives {dtype}; Circle has {', '.join(DTYPES.values())}")
        return DTYPES[dtype]

    def shape(self, value: Value) -> tuple[int, ...]:
        if isinstance(value, Ref):
            return self.build.tensors[value.index].shape
        return value.shape if isinstance(value, Const) else ()

    def dtype(self, value: Ref | Const) -> str:
        if isinstance(value, Ref):
            return self.build.tensors[value.index].dtype
        if value.block is not None:
            return value.block
        return value.quant.dtype if value.quant else DTYPES[value.dtype]

    def quant(self, value: Value) -> Quant | None:
        if isinstance(value, Ref):
            return self.build.tensors[value.index].quant
        return value.quant if isinstance(value, Const) else None

    def error(self, message: str) -> ExportError:
        return ExportError(f"{self}: {message}")

    def __str__(self) -> str:
        return f"{target_of(self.node)} ('{self.node.name}') in {self.where}"

    # ---- constants

    def ints(self, numbers: Sequence[int], what: str) -> Const:
        """An int32 vector (shape, permutation, axes ...), one constant for equal vectors."""
        key = ("ints", tuple(numbers))
        if key not in self._constants:
            data = torch.tensor(list(numbers), dtype=torch.int32, device="cpu")
            self._constants[key] = Const(what, tuple(data.shape), torch.int32, lambda: data, self.where)
        return self._constants[key]

    def number(self, value: float, dtype: torch.dtype = torch.float32, grid: Quant | None = None) -> Const:
        """A scalar constant; with `grid` it is exact on a grid of that one's integer type."""
        quant = exact_grid(float(value), grid) if grid else None
        key = ("number", float(value), str(np.float64(value)), dtype, quant)
        if key not in self._constants:
            data = torch.tensor(value, dtype=dtype, device="cpu")
            self._constants[key] = Const(f"scalar_{value:g}", (), dtype, lambda: data, self.where, quant)
        return self._constants[key]

    def exact(self, value: Value, like: Quant) -> Ref | Const:
        """A number or one-element float constant on a grid that represents it exactly; anything else unchanged."""
        if isinstance(value, int | float):
            return self.number(value, grid=like)
        assert value is not None
        if is_one_float(value):
            assert isinstance(value, Const)
            quant, const = exact_grid(value.item(), like), value
            return Const(value.name, value.shape, value.dtype, const.value, value.where, quant)
        return value

    # ---- from grid to grid

    def quantize(self, value: Ref | Const, quant: Quant) -> Ref | Const:
        """`value` on `quant`: itself, a quantized constant, or a QUANTIZE."""
        if (current := self.quant(value)) is not None and _covers(quant, current):
            return value
        if isinstance(value, Const):
            const = value
            return Const(value.name, value.shape, value.dtype, lambda: _on_grid(const, quant), value.where, quant)
        key = ("quantize", value.index, quant)
        if key not in self._conversions:
            tensor = self.build.tensors[value.index]
            out = self.emit(
                "QUANTIZE", [value], shape=tensor.shape, dtype=quant.dtype, quant=quant, name=tensor.name + ".q"
            )
            if tensor.quant is None:
                self.build.update(out, origin=tensor.origin)
            self._conversions[key] = out
        return self._conversions[key]

    def dequantize(self, value: Value) -> Ref | Const:
        """`value` as float: itself, a float constant, or a DEQUANTIZE."""
        if isinstance(value, int | float):
            return self.number(value)
        assert value is not None
        if isinstance(value, Const) and (value.quant is not None or value.block is not None):
            return Const(value.name, value.shape, value.dtype, value.value, value.where)
        if self.quant(value) is None or isinstance(value, Const):
            return value
        key = ("dequantize", value.index)
        if key not in self._conversions:
            tensor = self.build.tensors[value.index]
            self._conversions[key] = self.emit(
                "DEQUANTIZE", [value], shape=tensor.shape, dtype="float32", name=tensor.name + ".f"
            )
        return self._conversions[key]

    def floats(self, values: Sequence[Value]) -> list[Ref | Const]:
        """All as float. A number or one-element constant gets the type of the other operands, as in eager."""
        tensors = [value for value in values if isinstance(value, Ref | Const) and not is_one_float(value)]
        typed = {self.dtype(self.dequantize(value)) for value in tensors}
        if len(typed) != 1 or not typed <= FLOATS:
            return [self.dequantize(value) for value in values]
        beside = next(dtype for dtype, name in DTYPES.items() if name in typed)
        return [self._float_like(value, beside) for value in values]

    def _float_like(self, value: Value, dtype: torch.dtype) -> Ref | Const:
        if isinstance(value, int | float):
            return self.number(value, dtype)
        if isinstance(value, Const) and is_one_float(value) and value.dtype != dtype:
            const = value
            return Const(value.name, value.shape, dtype, lambda: const.value().to(dtype), value.where)
        return self.dequantize(value)

    # ---- operators

    def emit(
        self,
        op: str,
        inputs: Sequence[Ref | Const | None],
        options: Mapping[str, Any] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
        quant: Quant | None = None,
        name: str | None = None,
        note: str = "",
    ) -> Ref:
        """One operator with exactly these inputs, no grid rule applied."""
        shape = self.out_shape if shape is None else shape
        dtype = (quant.dtype if quant else self.out_dtype) if dtype is None else dtype
        name = self.name() if name is None else name
        return self.build.emit(
            op, inputs, options, name=name, shape=shape, dtype=dtype, where=self.where, quant=quant, note=note
        )

    def name(self) -> str:
        target = target_of(self.node)
        base = target.split(".")[1] if "." in target else target
        return f"{self.where.module}.{base}" if self.where.module else base

    def compute(
        self,
        op: str,
        operands: Sequence[Value],
        options: Mapping[str, Any] | None = None,
        *,
        weights: int = 0,
        tail: Sequence[Ref | Const] = (),
        shape: tuple[int, ...] | None = None,
        inherit: bool = False,
    ) -> Ref:
        """An arithmetic operator. Its last `weights` operands may have an integer type of their own; `tail` are axes.

        With `inherit`, a result without a grid of its own gets the grid of the operands, if they share one.
        """
        if not self.fake.dtype.is_floating_point:
            return self.emit(op, [*(self._typed(v, self.fake.dtype) for v in operands), *tail], options, shape=shape)
        grids = [quant for value in operands if (quant := self.quant(value)) is not None]
        grid = self.want or (self._shared_grid(operands) if inherit else None)
        missing = [value for value in operands if not self._quantizable(value)]
        if grid is not None and grids and not missing:
            data = len(operands) - weights
            dtype = widest(
                [grid.dtype, *(quant.dtype for v in operands[:data] if (quant := self.quant(v)) is not None)]
            )
            on_grid = [self.exact(value, widened(grids[0], dtype)) for value in operands]
            wide = [self.widen(value, dtype) for value in on_grid[:data]]
            return self.result(op, [*wide, *on_grid[data:], *tail], options, grid, dtype, shape=shape)
        return self.emit(op, [*self.floats(operands), *tail], options, shape=shape, note=self.note(missing))

    def result(
        self,
        op: str,
        inputs: Sequence[Ref | Const | None],
        options: Mapping[str, Any] | None,
        grid: Quant,
        dtype: str,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> Ref:
        """A quantized operator that computes in `dtype`, its result on `grid`.

        When `dtype` is wider than the grid's type, the operator's result has the same scale in `dtype`, and a QUANTIZE
        saturates it to the grid.
        """
        out = self.emit(op, inputs, options, shape=shape, quant=widened(grid, dtype))
        if dtype == grid.dtype:
            return out
        self.build.update(out, origin=self.node.name if shape in (None, self.out_shape) else None)
        narrow = self.quantize(out, grid)
        assert isinstance(narrow, Ref)
        return narrow

    def widen(self, value: Ref | Const, dtype: str) -> Ref | Const:
        """A quantized value in a wider integer type, its real values unchanged."""
        quant = self.quant(value)
        assert quant is not None
        return self.quantize(value, widened(quant, dtype))

    def move(
        self,
        op: str,
        value: Ref | Const,
        extra: Sequence[Ref | Const] = (),
        options: Mapping[str, Any] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> Ref:
        """A value-preserving operator on `value`: the result keeps its type and grid."""
        if isinstance(value, Const) and value.block is not None:
            value = self.dequantize(value)
        if isinstance(value, Const) and value.floating and value.quant is None and self.want is not None:
            value = self.quantize(value, self.want)
        quant = self.quant(value)
        if quant is not None and not quant.per_tensor:
            raise self.error("a per-channel constant cannot be moved in the graph; quantize it per tensor")
        return self.emit(
            op, [value, *extra], options, shape=shape, dtype=self.dtype(value), quant=quant, note=self.note([value])
        )

    def join(
        self,
        op: str,
        parts: Sequence[Value],
        options: Mapping[str, Any] | None = None,
        *,
        lead: Sequence[Ref | Const] = (),
        tail: Sequence[Ref | Const] = (),
        shape: tuple[int, ...] | None = None,
    ) -> Ref:
        """An operator whose result consists of values of `parts`, which need one grid.

        That is their own grid when they share one, else the wanted one, with a QUANTIZE for each part on another grid.
        """
        fake = self.fake
        if not fake.dtype.is_floating_point:
            return self.emit(
                op, [*lead, *(self._typed(part, fake.dtype) for part in parts), *tail], options, shape=shape
            )
        grid = self._shared_grid(parts) or self.want
        if grid is not None:
            on_grid = [self.quantize(self._as_const(part), grid) for part in parts]
            return self.emit(op, [*lead, *on_grid, *tail], options, shape=shape, quant=grid)
        grids = sorted({str(quant) for part in parts if (quant := self.quant(part)) is not None})
        note = self.note([])
        if len(grids) > 1:
            note = (
                f"it joins unequal grids ({'; '.join(grids)}) and no fake_quantize follows: "
                "share one site, or add one on the result"
            )
        return self.emit(op, [*lead, *self.floats(parts), *tail], options, shape=shape, note=note)

    def same_kind(self, operands: Sequence[Value]) -> list[Ref | Const]:
        """Operands of a comparison: all quantized when they can be, else all float, else all of one integer type."""
        grid = next((quant for value in operands if (quant := self.quant(value)) is not None), None)
        if grid is not None and all(self._quantizable(value) for value in operands):
            exact = [self.exact(value, grid) for value in operands]
            dtype = widest(quant.dtype for value in exact if (quant := self.quant(value)) is not None)
            return [self.widen(value, dtype) for value in exact]
        if grid is not None:
            return self.floats(operands)
        dtype = next(self.dtype(value) for value in operands if isinstance(value, Ref | Const))
        return [self._typed(value, next(t for t, name in DTYPES.items() if name == dtype)) for value in operands]

    # ---- the rule

    def _quantizable(self, value: Value) -> bool:
        return self.quant(value) is not None or isinstance(value, int | float) or is_one_float(value)

    def _shared_grid(self, parts: Sequence[Value]) -> Quant | None:
        """The grid of all quantized parts, when it is one and represents every other part exactly."""
        grids = {quant for part in parts if (quant := self.quant(part)) is not None}
        if len(grids) != 1:
            return None
        grid = grids.pop()
        for part in parts:
            if self.quant(part) is not None:
                continue
            const = self._as_const(part) if isinstance(part, int | float) else part
            if not isinstance(const, Const) or not torch.equal(_on_grid(const, grid), const.value().float()):
                return None
        return grid

    def _as_const(self, value: Value) -> Ref | Const:
        if isinstance(value, int | float):
            return self.number(value)
        assert value is not None
        return value

    def _typed(self, value: Value, dtype: torch.dtype) -> Ref | Const:
        return self.number(value, dtype) if isinstance(value, int | float) else self._as_const(value)

    def note(self, missing: Sequence[Value]) -> str:
        """Why the result of the current node is float."""
        names = [
            self.build.tensors[v.index].name if isinstance(v, Ref) else v.name
            for v in missing
            if isinstance(v, Ref | Const)
        ]
        if self.want is not None and names:
            return f"it is fake-quantized, but computed from float: {', '.join(names)}"
        return self.grids.notes.get(self.node, "")


def is_one_float(value: Value) -> bool:
    return isinstance(value, Const) and value.quant is None and value.floating and value.numel == 1


def _covers(wide: Quant, narrow: Quant) -> bool:
    """True when every value on `narrow` is also on `wide`, so that requantizing changes nothing."""
    same = (wide.dtype, wide.scale, wide.zero_point, wide.axis) == (
        narrow.dtype,
        narrow.scale,
        narrow.zero_point,
        narrow.axis,
    )
    return same and wide.qmin <= narrow.qmin and narrow.qmax <= wide.qmax


def _on_grid(const: Const, quant: Quant) -> torch.Tensor:
    return dequantize_from(quantize_to(const.value(), quant), quant)
