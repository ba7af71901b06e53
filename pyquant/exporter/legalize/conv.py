# SPDX-License-Identifier: Apache-2.0
"""CONV_2D and DEPTHWISE_CONV_2D with a bias: onert 0.1.0 loads none without.

A quantized convolution keeps its form, which the checker reports.
"""

from __future__ import annotations

import torch

from pyquant.exporter.legalize.editor import Editor
from pyquant.exporter.plan import Graph, Op

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


def add_biases(graph: Graph) -> Graph:
    """A bias of zeros for every float convolution that has none."""
    edit = Editor(graph)
    for op in graph.operators:
        if op.op in _CONVOLUTIONS and op.inputs[2] == -1 and edit.tensors[op.outputs[0]].dtype == "float32":
            edit.keep(op, inputs=(*op.inputs[:2], _zeros(edit, op)))
        else:
            edit.keep(op)
    return edit.graph()


def _zeros(edit: Editor, op: Op) -> int:
    channels = edit.tensors[op.outputs[0]].shape[-1]
    return edit.constant(torch.zeros(channels, dtype=torch.float32, device="cpu"), "bias", op)
