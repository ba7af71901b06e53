# SPDX-License-Identifier: Apache-2.0
"""A TRANSPOSE of the last two dimensions before a BATCH_MATMUL becomes that operator's adjoint flag.

Other permutations stay operators.
"""

from __future__ import annotations

from dataclasses import replace

from pyquant.exporter.passes.rewire import ints
from pyquant.exporter.plan import Graph, Op

_FLAGS = ("adjoint_lhs", "adjoint_rhs")


def fold_matmul_transposes(graph: Graph) -> Graph:
    """Let BATCH_MATMUL read the untransposed matrices."""
    swaps = {op.outputs[0]: op.inputs[0] for op in graph.operators if op.op == "TRANSPOSE" and _swaps_last(graph, op)}

    def edit(op: Op) -> Op:
        if op.op != "BATCH_MATMUL":
            return op
        flip = {flag: not op.options[flag] for flag, index in zip(_FLAGS, op.inputs, strict=True) if index in swaps}
        return replace(op, inputs=tuple(swaps.get(i, i) for i in op.inputs), options={**op.options, **flip})

    return graph.replace(operators=tuple(map(edit, graph.operators)))


def _swaps_last(graph: Graph, op: Op) -> bool:
    order = ints(graph, op.inputs[1])
    rank = len(order)
    return rank >= 2 and order == [*range(rank - 2), rank - 1, rank - 2]
