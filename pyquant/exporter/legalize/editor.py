# SPDX-License-Identifier: Apache-2.0
"""Rewrites a graph operator by operator: new operators, tensors and constants are added to the old ones.

It is independent of targets. Kept operators are appended in order, so the order of execution stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyquant.exporter.constant import Constant
from pyquant.exporter.plan import DTYPES, Graph, Op, Tensor

FUSED = {"fused_activation_function": "NONE"}
SUM = {**FUSED, "pot_scale_int16": False}


class Editor:
    """Collects the new graph. Tensors keep their numbers; the new ones come after them."""

    def __init__(self, graph: Graph) -> None:
        self.before = graph
        self.tensors = list(graph.tensors)
        self.constants = list(graph.constants)
        self.operators: list[Op] = []
        self._names = {tensor.name for tensor in graph.tensors}

    def keep(self, op: Op, **changes: Any) -> None:
        """Append an operator of the old graph, with other inputs or options."""
        self.operators.append(replace(op, **changes) if changes else op)

    def emit(
        self,
        op: str,
        inputs: Sequence[int],
        options: Mapping[str, Any],
        at: Op,
        *,
        like: int,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
        out: int | None = None,
    ) -> int:
        """Append `op`, which computes a part of `at`. It writes `out`, or a new tensor like `like`."""
        if out is None:
            out = self.new(like, dtype, shape)
        self.operators.append(Op(op, tuple(inputs), (out,), dict(options), at.where))
        return out

    def new(self, like: int, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> int:
        """A tensor like another one, which no operator writes yet."""
        old = self.tensors[like]
        changes: dict[str, Any] = {} if dtype in (None, old.dtype) else {"dtype": dtype, "quant": None}
        new = replace(old, name=self._unique(old.name), constant=None, origin=None, **changes)
        self.tensors.append(new if shape is None else replace(new, shape=shape))
        return len(self.tensors) - 1

    def constant(self, data: torch.Tensor | Constant, name: str, at: Op) -> int:
        """A new constant tensor."""
        self.constants.append(data if isinstance(data, Constant) else Constant.of(data))
        dtype, shape = DTYPES[data.dtype], tuple(data.shape)
        self.tensors.append(Tensor(self._unique(name), dtype, shape, constant=len(self.constants) - 1, where=at.where))
        return len(self.tensors) - 1

    def reshape(self, source: int, shape: tuple[int, ...], at: Op, out: int | None = None) -> int:
        """`source` in another shape: itself when nothing changes and no output is named."""
        if out is None and self.tensors[source].shape == shape:
            return source
        size = self.constant(torch.tensor(shape, dtype=torch.int32, device="cpu"), "shape", at)
        return self.emit("RESHAPE", [source, size], {"new_shape": list(shape)}, at, like=source, shape=shape, out=out)

    def cast(self, source: int, dtype: str, at: Op, out: int | None = None) -> int:
        """`source` in another type."""
        options = {"in_data_type": self.tensors[source].dtype.upper(), "out_data_type": dtype.upper()}
        return self.emit("CAST", [source], options, at, like=source, dtype=dtype, out=out)

    def is_constant(self, index: int) -> bool:
        return index >= 0 and self.tensors[index].constant is not None

    def value(self, index: int) -> Constant:
        """The data of a constant tensor."""
        number = self.tensors[index].constant
        assert number is not None, f"{self.tensors[index].name} is no constant"
        return self.constants[number]

    def graph(self) -> Graph:
        """The new graph, with the old one's inputs and outputs."""
        return self.before.replace(
            tensors=tuple(self.tensors), operators=tuple(self.operators), constants=tuple(self.constants)
        )

    def _unique(self, name: str) -> str:
        number, unique = 2, name
        while unique in self._names:
            unique, number = f"{name}_{number}", number + 1
        self._names.add(unique)
        return unique
