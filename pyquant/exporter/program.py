# SPDX-License-Identifier: Apache-2.0
"""CircleProgram: one graph with its constants, ready to be checked and written.

It owns writing the file. Building the graph is pipeline.py, checking what it computes is verify/.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyquant import circle
from pyquant.circle.files import Target
from pyquant.exporter.constant import Constant
from pyquant.exporter.coverage import float_tensors
from pyquant.exporter.plan import Graph, Tensor
from pyquant.exporter.tracing import Traced


@dataclass(frozen=True, eq=False)
class CircleProgram:
    """What export() returns: the Circle graph, and the program and adapter that it was read from."""

    graph: Graph
    traced: Traced = field(repr=False)
    adapter: nn.Module = field(repr=False)
    profile: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def exported(self) -> torch.export.ExportedProgram:
        """The traced program: the same operations as the eager model, with fake_quantize nodes.

        Of a graph whose equal layers were recorded once it is built on first use, from the graph that was lowered: what
        a full trace gives.
        """
        return self.traced.program

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Graph inputs in call order: name, shape, dtype and quant."""
        return tuple(self.graph.tensors[index] for index in self.graph.inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Graph outputs in return order: name, shape, dtype and quant."""
        return tuple(self.graph.tensors[index] for index in self.graph.outputs)

    @property
    def size(self) -> int:
        """Bytes of the constants; the file adds its header. `save` returns the size of the file."""
        return self.graph.constant_bytes

    def missing_qparams(self) -> list[str]:
        """Names of the float tensors; empty under a fully quantized policy."""
        return [tensor.name for tensor in float_tensors(self.graph)]

    def check(self, target: Target = "circle") -> list[circle.Fault]:
        """Faults of the plan for a target (circle, luci, onert), without writing a file; empty when it fits."""
        sizes = [constant.nbytes for constant in self.graph.constants]
        return circle.check_plan(self.graph.to_json(), sizes, target)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file: whole or not at all, same program same bytes. Returns its size in bytes.

        Raises CircleError when the folder does not exist or the disk is full; a file that was there stays as it was.
        """
        return circle.write(self.graph.to_json(), self.graph.constants, path)

    def mapped(self, source: circle.files.Source) -> CircleProgram:
        """The same program with its constants in the file `source` (or the model that was read from it), which `save`
        wrote, or which has several graphs, one of them of this name. They are read when they are needed, and saved by
        copying: it depends on the model no longer."""
        graphs = circle.read(source).graphs
        own = next((graph for graph in graphs if graph.name == self.name), graphs[0])
        data = {tensor.name: tensor.data for tensor in own.tensors if tensor.is_constant}
        constants = list(self.graph.constants)
        for tensor in self.graph.tensors:
            if tensor.constant is not None:
                old = self.graph.constants[tensor.constant]
                constants[tensor.constant] = replace(
                    old, make=partial(_view, data[tensor.name], old), lead=None, file=data[tensor.name]
                )
        return replace(self, graph=self.graph.replace(constants=tuple(constants)))

    def to_bytes(self) -> bytes:
        """The bytes of the file, written to a temporary file first."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program.circle"
            self.save(path)
            return path.read_bytes()

    def __str__(self) -> str:
        ends = [f"{t.name}: {t.dtype}{list(t.shape)}" for t in (*self.inputs, *self.outputs)]
        count = len(self.inputs)
        before, after = ", ".join(ends[:count]), ", ".join(ends[count:])
        return f"{self.name}({before}) -> {after}, {len(self.graph.operators)} operators"


def _view(data: memoryview | None, like: Constant) -> torch.Tensor:
    if data is None or not like.numel:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mapped file is read-only, and nothing writes to it
        return torch.frombuffer(data, dtype=like.dtype).view(like.shape)
