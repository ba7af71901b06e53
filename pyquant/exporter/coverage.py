# SPDX-License-Identifier: Apache-2.0
"""The coverage contract: under a fully quantized policy no tensor of the graph is float.

It finds float tensors and reports where each comes from and why. Whether a policy is fully quantized is pipeline.py.
"""

from __future__ import annotations

from pyquant.errors import ExportError
from pyquant.exporter.plan import Graph, Tensor

_SHOWN = 40


def float_tensors(graph: Graph) -> list[Tensor]:
    """Every float tensor of a graph, in execution order, without those that DEQUANTIZE makes for a float operator."""
    dequantized = {op.outputs[0] for op in graph.operators if op.op == "DEQUANTIZE"}
    return [tensor for index, tensor in enumerate(graph.tensors) if tensor.is_float and index not in dequantized]


def require_quantized(graph: Graph) -> None:
    """Raise ExportError listing every float tensor: its operator, its source line, and the reason."""
    left = {id(tensor) for tensor in float_tensors(graph)}
    if not left:
        return
    makers = {op_out: op.op for op in graph.operators for op_out in op.outputs}
    readers = {index: op for op in reversed(graph.operators) for index in op.inputs}
    lines = []
    for index, tensor in enumerate(graph.tensors):
        if id(tensor) not in left:
            continue
        role, where = makers.get(index, "graph input"), tensor.where
        if tensor.constant is not None:
            role, where = f"constant read by {readers[index].op}", readers[index].where
        lines.append(f"  '{tensor.name}' ({role}, {where}): {tensor.note or 'it has no site'}")
    more = len(lines) - _SHOWN
    text = "\n".join(lines[:_SHOWN]) + (f"\n  ... and {more} more" if more > 0 else "")
    raise ExportError(
        f"{len(lines)} float tensor(s) remain in the fully quantized graph '{graph.name}':\n{text}\n"
        "Give each a site in its wrapper, or declare in the policy that it stays float."
    )
