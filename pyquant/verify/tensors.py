# SPDX-License-Identifier: Apache-2.0
"""tensors(): every tensor of an exported Circle graph, run as a whole, against the eager value that it stands for.

It owns the level of tensors: errors add up from input to output here, where compare() judges each operator alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pyquant.verify.compare import expected_value, exported_values, ordered_inputs, require_float32
from pyquant.verify.metrics import lsb_error, max_abs_diff, peir, sqnr_db
from pyquant.verify.runtimes.tico import Inputs, Runtime


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of the file. `node` is the node of the exported program that it stands for, `op` what makes it.

    scale: per tensor or the least of many, None for a tensor without a grid. max_lsb: largest difference in steps of
    that grid. unequal: elements that differ at all.
    """

    index: int
    name: str
    node: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    elements: int
    unequal: int
    max_abs: float
    max_lsb: float | None
    peir: float
    sqnr_db: float


@dataclass(frozen=True)
class TensorReport:
    """The tensors in the order in which the file computes them. `unchecked` stand for no eager value (made by a
    rewrite of the graph)."""

    name: str
    tensors: tuple[TensorDiff, ...]
    unchecked: tuple[str, ...] = ()

    def worst(self, count: int = 10) -> tuple[TensorDiff, ...]:
        """The `count` tensors of largest PEIR, the largest first."""
        return tuple(sorted(self.tensors, key=lambda each: -each.peir)[:count])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities as text."""
        rows = [{k: str(v) if v in (np.inf, -np.inf) else v for k, v in asdict(each).items()} for each in self.tensors]
        return {"name": self.name, "tensors": rows, "unchecked": list(self.unchecked)}


@torch.no_grad()
def tensors(prog: Any, inputs: Inputs) -> TensorReport:
    """Run `prog` in TICO's reference runtime and its exported program in torch, and compare every tensor between.

    prog: a CircleProgram. inputs: the graph's, in order or by name. Constants are not compared: the exporter wrote them
    from the eager model's. Raises InputError for inputs that do not fit, ImportError when tico is not installed.
    """
    require_float32(prog)
    given = ordered_inputs(prog, inputs)
    values, _ = exported_values(prog, given)
    got = Runtime(prog).run(given, trace=True)
    graph = prog.graph
    makers = {index: op.op for op in graph.operators for index in op.outputs}
    rows, unchecked = [], []
    for index in [*graph.inputs, *(index for op in graph.operators for index in op.outputs)]:
        tensor = graph.tensors[index]
        if tensor.origin is None or tensor.name not in got:
            unchecked.append(tensor.name)
            continue
        expected = torch.from_numpy(np.ascontiguousarray(expected_value(tensor, values)))
        found = got[tensor.name].reshape(expected.shape)
        scale = None if tensor.quant is None else min(tensor.quant.scale)
        steps = None if scale is None else lsb_error(expected, found, scale)
        rows.append(
            TensorDiff(
                index,
                tensor.name,
                tensor.origin,
                makers.get(index, "input"),
                tensor.dtype,
                tuple(tensor.shape),
                scale,
                expected.numel(),
                int((expected != found).sum()),
                max_abs_diff(expected, found),
                float(np.rint(steps).max()) if steps is not None and steps.size else None,
                peir(expected, found),
                sqnr_db(expected, found),
            )
        )
    return TensorReport(prog.name, tuple(rows), tuple(unchecked))
