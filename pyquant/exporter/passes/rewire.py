# SPDX-License-Identifier: Apache-2.0
"""What passes share: reading an integer constant, and making operators read another tensor.

dead.py removes tensors and operators that nothing reads any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pyquant.exporter.plan import Graph, Op


def ints(graph: Graph, index: int) -> list[int]:
    """The numbers of an int32 or int64 constant tensor."""
    constant = graph.tensors[index].constant
    assert constant is not None, f"{graph.tensors[index].name} is no constant"
    return [int(number) for number in graph.constants[constant].tensor().reshape(-1).tolist()]


def rewire(graph: Graph, instead: Mapping[int, int]) -> Graph:
    """Make every operator that reads tensor `old` read `instead[old]`. Graph outputs stay as they are."""
    if not instead:
        return graph
    resolved: dict[int, int] = {}
    for old in instead:
        new = instead[old]
        while new in instead:
            new = instead[new]
        resolved[old] = new

    def edit(op: Op) -> Op:
        if not any(index in resolved for index in op.inputs):
            return op
        return replace(op, inputs=tuple(resolved.get(index, index) for index in op.inputs))

    return graph.replace(operators=tuple(map(edit, graph.operators)))
