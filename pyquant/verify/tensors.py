# SPDX-License-Identifier: Apache-2.0
"""tensors(): every tensor of an exported Circle graph, run end to end, against its eager value.

Errors accumulate from input to output here; compare() measures each operator alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyquant.errors import InputError
from pyquant.exporter.plan import Tensor
from pyquant.exporter.program import CircleProgram
from pyquant.metrics import lsb_error, max_abs_diff, peir, sqnr_db, to_plain
from pyquant.verify.fidelity import expected_value, exported_values, ordered_inputs, require_float32
from pyquant.verify.runtimes import TraceableName, traceable
from pyquant.verify.runtimes._inputs import Inputs


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of the file. `node` is its node in the exported program, `op` the operator that writes it.

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
    """The tensors in the order in which the file computes them. `unchecked` have no eager value (a rewrite of the
    graph added them). `constants`: the constants of a file that differ from the exported ones, which are their eager
    values."""

    name: str
    tensors: tuple[TensorDiff, ...]
    unchecked: tuple[str, ...] = ()
    constants: tuple[TensorDiff, ...] = ()

    def worst(self, count: int = 10) -> tuple[TensorDiff, ...]:
        """The `count` tensors of largest PEIR, the largest first."""
        return tuple(sorted(self.tensors, key=lambda each: -each.peir)[:count])

    def most_steps(self, count: int = 10) -> tuple[TensorDiff, ...]:
        """The `count` tensors with the largest difference in steps of their grid, the largest first."""
        with_grid = [each for each in self.tensors if each.max_lsb is not None]
        return tuple(sorted(with_grid, key=lambda each: -(each.max_lsb or 0.0))[:count])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities as text."""
        return {
            "name": self.name,
            "tensors": [to_plain(asdict(each)) for each in self.tensors],
            "unchecked": list(self.unchecked),
            "constants": [to_plain(asdict(each)) for each in self.constants],
        }


@torch.no_grad()
def tensors(
    prog: CircleProgram,
    inputs: Inputs,
    file: str | Path | bytes | None = None,
    *,
    runtime: TraceableName = "native",
) -> TensorReport:
    """Run `prog` in a runtime (pyquant's own, or "tico", TICO's reference) and its exported program in torch, and
    compare every tensor of the two.

    prog: a CircleProgram. inputs: the graph's, in order or by name. file: the file to run instead of `prog`: one of
    the same graph, whose tensors are found by name and whose constants are compared with those of `prog`. Raises
    InputError for inputs that do not fit and a file of another graph, ImportError when tico is not installed.
    """
    require_float32(prog)
    given = ordered_inputs(prog, inputs)
    values, _ = exported_values(prog, given)
    ran = traceable(runtime, prog if file is None else file if isinstance(file, bytes) else Path(file).read_bytes())
    graph = prog.graph
    _require_same_graph(prog, ran)
    got = ran.run(given, trace=True)
    makers = {index: op.op for op in graph.operators for index in op.outputs}
    rows, unchecked = [], []
    for index in [*graph.inputs, *(index for op in graph.operators for index in op.outputs)]:
        tensor = graph.tensors[index]
        if tensor.origin is None or tensor.name not in got:
            unchecked.append(tensor.name)
            continue
        expected = torch.from_numpy(np.ascontiguousarray(expected_value(tensor, values)))
        rows.append(_diff(index, tensor, makers.get(index, "input"), expected, got[tensor.name]))
    constants = () if file is None else tuple(_changed_constants(prog, traceable(runtime, prog), ran))
    return TensorReport(prog.name, tuple(rows), tuple(unchecked), constants)


def _diff(index: int, tensor: Tensor, op: str, expected: torch.Tensor, found: torch.Tensor) -> TensorDiff:
    if found.numel() != expected.numel():
        raise InputError(
            f"the file's tensor '{tensor.name}' is {list(found.shape)}, the exported one {list(expected.shape)}: the "
            "file is of another graph; give one that was exported from this model for these inputs"
        )
    found = found.reshape(expected.shape)
    scale = None if tensor.quant is None else min(tensor.quant.scale)
    steps = None if scale is None else lsb_error(expected, found, scale)
    return TensorDiff(
        index,
        tensor.name,
        tensor.origin or "",
        op,
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


def _require_same_graph(prog: CircleProgram, runtime: Any) -> None:
    ours = [(tensor.name, tuple(tensor.shape)) for tensor in prog.inputs]
    theirs = list(zip(runtime.input_names, runtime.input_shapes, strict=True))
    if theirs != ours:
        raise InputError(
            f"the file's inputs are {_text(theirs)}, those of the graph exported here {_text(ours)}: give a file that "
            "was exported from this model for these inputs"
        )
    known = set(runtime.tensor_names)
    computed = [prog.graph.tensors[index].name for op in prog.graph.operators for index in op.outputs]
    if lost := [name for name in computed if name not in known]:
        raise InputError(
            f"the file lacks {len(lost)} of the {len(computed)} tensors of the graph exported here, such as "
            f"'{lost[0]}': give a file that was exported from this model for these inputs"
        )


def _text(inputs: list[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in inputs)


def _changed_constants(prog: CircleProgram, own: Any, file: Any) -> Iterator[TensorDiff]:
    """The constants of a file that differ from those of `prog`, in the order of the graph."""
    ours, theirs = own.constants(), file.constants()
    for index, tensor in enumerate(prog.graph.tensors):
        if tensor.name in ours and tensor.name in theirs and not np.array_equal(ours[tensor.name], theirs[tensor.name]):
            expected, found = (torch.from_numpy(np.ascontiguousarray(c[tensor.name])) for c in (ours, theirs))
            yield _diff(index, tensor, "constant", expected, found)
