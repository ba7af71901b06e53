# SPDX-License-Identifier: Apache-2.0
"""Small modules for the exporter's tests: a function as an adapter, and a grid as a module.

They own no arithmetic; each test has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyquant import ops
from pyquant.exporter import CircleProgram, TensorSpec, export
from pyquant.verify import Report, compare, fidelity
from pyquant.verify.tolerance import op_faults

RANGES = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "sym8": (-127, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),  # as sites saturate: where the type does
}
ACTIVATIONS = ("uint8", "int8", "int16")


class Grid(nn.Module):
    """A quantization point with its own numbers, as a converted site has."""

    def __init__(self, kind: str, low: Any, high: Any, axis: int | None = None, group: int = 0) -> None:
        super().__init__()
        self.qmin, self.qmax = RANGES[kind]
        self.axis, self.group = axis, group
        lo, hi = torch.as_tensor(low, dtype=torch.float32), torch.as_tensor(high, dtype=torch.float32)
        symmetric = self.qmin == -self.qmax or kind == "int16"
        scale, zero_point = ops.choose_qparams(lo, hi, self.qmin, self.qmax, symmetric)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return ops.fake_quantize(x, self.scale, self.zero_point, self.axis, self.group, self.qmin, self.qmax)


class Graph(nn.Module):
    """A function `fn(self, *inputs)` with its submodules and tensors, as an export adapter."""

    def __init__(self, fn: Callable[..., Any], *specs: TensorSpec | tuple[int, ...], **parts: Any) -> None:
        super().__init__()
        self.fn, self.name = fn, "case"
        given = [spec if isinstance(spec, TensorSpec) else TensorSpec(spec) for spec in specs]
        self.input_specs = {f"x{i}" if i else "x": spec for i, spec in enumerate(given)}
        self.output_names: tuple[str, ...] = parts.pop("outputs", ("y",))
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.fn(self, *inputs)


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5


def channels(value: Tensor, kind: str, axis: int = 0) -> Grid:
    """A per-channel grid that fits `value`."""
    dims = [d for d in range(value.dim()) if d != axis]
    return Grid(kind, value.amin(dims).clamp(max=0), value.amax(dims).clamp(min=0), axis)


def inputs_of(graph: Graph, seed: int = 1) -> list[Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [  # inside (-2, 2), so that no grid of the tests saturates
        torch.randn(spec.shape, generator=gen).clamp(-1.99, 1.99)
        if spec.dtype.is_floating_point
        else torch.randint(0, 2, spec.shape, generator=gen).to(spec.dtype)
        for spec in graph.input_specs.values()
    ]


def quantized(
    graph: Graph, inputs: Sequence[Tensor] | None = None, *, single_layer: bool = True
) -> tuple[CircleProgram, Report]:
    """Export a fully quantized graph and assert the fidelity contract on it (op by op alone: not `single_layer`), as
    TICO's runtime computes it; pyquant's own has the exact integers, which float32 misses by a step now and then."""
    program = export(graph)
    assert program.missing_qparams() == []
    given = inputs_of(graph) if inputs is None else inputs
    assert max((op.max_lsb or 0.0 for op in compare(program, graph, given).operators), default=0.0) <= 1
    if single_layer:
        return program, fidelity(program, graph, given, runtime="tico")
    report = compare(program, graph, given, runtime="tico")
    assert op_faults(report) == []
    return program, report


def operators(program: CircleProgram) -> list[str]:
    return [op.op for op in program.graph.operators]


def tensor(program: CircleProgram, name: str) -> Any:
    return next(t for t in program.graph.tensors if t.name == name)
