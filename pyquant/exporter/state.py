# SPDX-License-Identifier: Apache-2.0
"""The state of a lowering: the node at hand, what is known about values, small constants, and plain emission.

It decides nothing about grids; that is context.py.
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
from pyquant.exporter.grid import exact_grid
from pyquant.exporter.plan import DTYPES, Quant, Where
from pyquant.exporter.propagate import Grids
from pyquant.exporter.registry import target_of
from pyquant.exporter.tracing import Traced, static_shape, where
from pyquant.exporter.values import Const, Ref, Value


class State:
    """The state of one lowering. `node` is the fx node at hand, and `want` the grid that its result must have."""

    def __init__(self, traced: Traced, folded: Folded, grids: Grids, builder: Builder) -> None:
        self.traced, self.grids, self.build = traced, grids, builder
        self.values: dict[Node, Any] = dict(folded)
        self.node: Node
        self.where = Where()
        self._shared: dict[Any, Any] = {}  # scalars, shape vectors, QUANTIZE and DEQUANTIZE results by what they are

    def at(self, node: Node) -> None:
        """Turn to a node."""
        self.node, self.where = node, where(node)

    # ---- what is known about values

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
        if key not in self._shared:
            data = torch.tensor(list(numbers), dtype=torch.int32)
            self._shared[key] = Const(what, tuple(data.shape), torch.int32, lambda: data, self.where)
        return self._shared[key]  # type: ignore[no-any-return]

    def number(self, value: float, dtype: torch.dtype = torch.float32, grid: Quant | None = None) -> Const:
        """A scalar constant; with `grid` it is exact on a grid of that one's integer type."""
        quant = exact_grid(float(value), grid) if grid else None
        key = ("number", float(value), str(np.float64(value)), dtype, quant)
        if key not in self._shared:
            data = torch.tensor(value, dtype=dtype)
            self._shared[key] = Const(f"scalar_{value:g}", (), dtype, lambda: data, self.where, quant)
        return self._shared[key]  # type: ignore[no-any-return]

    def exact(self, value: Value, like: Quant) -> Ref | Const:
        """A number or one-element float constant on a grid that holds it exactly; anything else as it is."""
        if isinstance(value, int | float):
            return self.number(value, grid=like)
        assert value is not None
        if is_lone_float(value):
            assert isinstance(value, Const)
            quant, const = exact_grid(value.item(), like), value
            return Const(value.name, value.shape, value.dtype, const.value, value.where, quant)
        return value

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
        """One operator as it is said, without any rule."""
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


def is_lone_float(value: Value) -> bool:
    return isinstance(value, Const) and value.quant is None and value.floating and value.numel == 1
