# SPDX-License-Identifier: Apache-2.0
"""RESHAPE of a RESHAPE: only the last shape matters.

dead.py removes the first one when nothing else reads it.
"""

from __future__ import annotations

from dataclasses import replace

from pyquant.exporter.plan import Graph, Op


def merge_reshapes(graph: Graph) -> Graph:
    """Let each RESHAPE read what the RESHAPEs before it read."""
    source: dict[int, int] = {}
    operators: list[Op] = []
    for op in graph.operators:
        if op.op == "RESHAPE":
            origin = source.get(op.inputs[0], op.inputs[0])
            source[op.outputs[0]] = origin
            op = replace(op, inputs=(origin, *op.inputs[1:]))
        operators.append(op)
    return graph.replace(operators=tuple(operators))
