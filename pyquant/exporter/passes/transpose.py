# SPDX-License-Identifier: Apache-2.0
"""TRANSPOSE of a TRANSPOSE: one permutation.

identity.py removes a permutation that is the identity.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pyquant.exporter.constant import Constant
from pyquant.exporter.passes.rewire import ints
from pyquant.exporter.plan import Graph, Op, Tensor


def merge_transposes(graph: Graph) -> Graph:
    """Let each TRANSPOSE read what the TRANSPOSEs before it read, with the product of the permutations."""
    source: dict[int, tuple[int, list[int]]] = {}
    known: dict[tuple[int, tuple[int, ...]], str | None] = {}  # which value an equal TRANSPOSE before has
    tensors, constants, operators = list(graph.tensors), list(graph.constants), list[Op]()
    for op in graph.operators:
        if op.op == "TRANSPOSE":
            order = ints(graph, op.inputs[1])
            if op.inputs[0] in source:
                origin, first = source[op.inputs[0]]
                order = [first[axis] for axis in order]
                constants.append(Constant.of(torch.tensor(order, dtype=torch.int32, device="cpu")))
                name = f"{tensors[op.outputs[0]].name}.perm"
                tensors.append(Tensor(name, "int32", (len(order),), constant=len(constants) - 1, where=op.where))
                op = replace(op, inputs=(origin, len(tensors) - 1))
            out = op.outputs[0]
            source[out] = (op.inputs[0], order)
            value = known.setdefault((op.inputs[0], tuple(order)), tensors[out].origin)
            if tensors[out].origin is None:
                tensors[out] = tensors[out].replace(origin=value)
        operators.append(op)
    return graph.replace(tensors=tuple(tensors), constants=tuple(constants), operators=tuple(operators))
