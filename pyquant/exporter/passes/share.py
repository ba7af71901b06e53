# SPDX-License-Identifier: Apache-2.0
"""Constants with equal bytes share one buffer; constants that differ only in name become one tensor.

It runs last, when every remaining constant is read. Tied weights are merged here. Constants are made to be compared
only where neither their origin nor their first bytes tell, and one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from pyquant.exporter.constant import Constant
from pyquant.exporter.passes.dead import remove_dead
from pyquant.exporter.passes.rewire import rewire
from pyquant.exporter.plan import Graph


def share_constants(graph: Graph) -> Graph:
    """One buffer for equal bytes, one tensor for equal constants (the first name stays)."""
    same = _equal(graph.constants)
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


def _equal(constants: tuple[Constant, ...]) -> dict[int, int]:
    """Index -> the first index with equal bytes, of constants that have an earlier equal."""
    same: dict[int, int] = {}
    first: dict[Hashable, int] = {}
    for index, constant in enumerate(constants):
        if constant.key is not None and first.setdefault(constant.key, index) != index:
            same[index] = first[constant.key]
    alone = [index for index in range(len(constants)) if index not in same]
    for sized in _groups(alone, lambda index: constants[index].nbytes):
        for alike in _groups(sized, lambda index: constants[index].beginning()):
            for equal in _groups(alike, lambda index: constants[index].digest()):
                same.update(dict.fromkeys(equal[1:], equal[0]))
    return {index: same.get(first, first) for index, first in same.items()}


def _groups(indices: Iterable[int], of: Callable[[int], Hashable]) -> list[list[int]]:
    """The indices with equal `of`, in order, where there are several."""
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(of(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]
