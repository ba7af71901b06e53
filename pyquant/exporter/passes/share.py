# SPDX-License-Identifier: Apache-2.0
"""Constants with equal bytes share one buffer; constants that differ only in name become one tensor.

It runs last, when every remaining constant is read. Tied weights are merged here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import torch

from pyquant.exporter.passes.dead import remove_dead
from pyquant.exporter.passes.rewire import rewire
from pyquant.exporter.plan import Graph


def share_constants(graph: Graph) -> Graph:
    """One buffer for equal bytes, one tensor for equal constants (the first name stays)."""
    sizes = Counter(map(_size, graph.constants))
    first: dict[object, int] = {}
    same: dict[int, int] = {}
    for index, constant in enumerate(graph.constants):
        if sizes[_size(constant)] > 1:
            same[index] = first.setdefault((_size(constant), _digest(constant)), index)
    tensors = tuple(
        tensor if tensor.constant is None else replace(tensor, constant=same.get(tensor.constant, tensor.constant))
        for tensor in graph.tensors
    )
    known: dict[object, int] = {}
    instead: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.constant is not None:
            kept = known.setdefault((tensor.constant, tensor.dtype, tensor.shape, tensor.quant), index)
            if kept != index:
                instead[index] = kept
    return remove_dead(rewire(graph.replace(tensors=tensors), instead))


def _size(constant: torch.Tensor) -> int:
    return constant.numel() * constant.element_size()


def _digest(constant: torch.Tensor) -> bytes:
    return hashlib.blake2b(constant.reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()
