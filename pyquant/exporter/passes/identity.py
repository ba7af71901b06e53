# SPDX-License-Identifier: Apache-2.0
"""Moves without effect: RESHAPE to the same shape, TRANSPOSE by the identity.

One that makes a graph output stays: it gives the output a tensor of its own. A tensor that lowering added learns from
the identity after it which value of the exported program it has.
"""

from __future__ import annotations

from pyquant.exporter.passes.rewire import ints, rewire
from pyquant.exporter.plan import Graph, Op


def remove_identities(graph: Graph) -> Graph:
    """Read the input of an identity instead of its output."""
    outputs = set(graph.outputs)
    instead = {
        op.outputs[0]: op.inputs[0] for op in graph.operators if op.outputs[0] not in outputs and _identity(graph, op)
    }
    tensors = list(graph.tensors)
    for gone, kept in instead.items():
        if tensors[kept].origin is None and tensors[kept].constant is None:
            tensors[kept] = tensors[kept].replace(origin=tensors[gone].origin)
    return rewire(graph.replace(tensors=tuple(tensors)), instead)


def _identity(graph: Graph, op: Op) -> bool:
    before, after = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if (before.dtype, before.quant) != (after.dtype, after.quant):
        return False
    if op.op == "RESHAPE":
        return before.shape == after.shape
    return op.op == "TRANSPOSE" and ints(graph, op.inputs[1]) == list(range(len(before.shape)))
