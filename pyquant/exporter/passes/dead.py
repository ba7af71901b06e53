# SPDX-License-Identifier: Apache-2.0
"""Dead code elimination: operators, tensors and constants that no graph output needs.

Graph inputs stay, read or not: they are the file's interface.
"""

from __future__ import annotations

from dataclasses import replace

from pyquant.exporter.plan import Graph, Op


def remove_dead(graph: Graph) -> Graph:
    """Keep what the outputs need, in the same order."""
    needed = set(graph.outputs)
    kept = []
    for op in reversed(graph.operators):
        if any(index in needed for index in op.outputs):
            kept.append(op)
            needed.update(index for index in (*op.inputs, *op.outputs) if index >= 0)
    kept.reverse()
    needed.update(graph.inputs)
    tensor_at = {old: new for new, old in enumerate(sorted(needed))}
    tensors = [graph.tensors[old] for old in tensor_at]
    used = sorted({tensor.constant for tensor in tensors if tensor.constant is not None})
    if len(tensor_at) == len(graph.tensors) and len(used) == len(graph.constants):
        return graph
    constant_at = {old: new for new, old in enumerate(used)}
    tensor_at[-1] = -1
    return graph.replace(
        tensors=tuple(t if t.constant is None else replace(t, constant=constant_at[t.constant]) for t in tensors),
        operators=tuple(
            Op(
                op.op,
                tuple([tensor_at[i] for i in op.inputs]),
                tuple([tensor_at[i] for i in op.outputs]),
                op.options,
                op.where,
            )
            for op in kept
        ),
        inputs=tuple(tensor_at[i] for i in graph.inputs),
        outputs=tuple(tensor_at[i] for i in graph.outputs),
        constants=tuple(graph.constants[old] for old in used),
    )
