# SPDX-License-Identifier: Apache-2.0
"""The graph of every part of the vision tower: one input, one output, and the static tables of one profile.

It owns the calling convention. The tables come from tables.py, the arithmetic is the wrapper's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import Tensor

from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.vision.tables import StaticTables
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule


def static_graph(
    module: QModule,
    tables: StaticTables,
    arguments: Callable[[StaticTables], dict[str, Any]],
    *,
    inputs: dict[str, TensorSpec],
    output: str,
    name: str,
) -> GraphAdapter:
    """`module(x, **arguments(tables))` as a graph of one input and one output. The graph owns the tables."""
    reference = next(chain(module.parameters(), module.buffers()), None)  # a float pooler has none
    placed = tables if reference is None else tables.to(reference.device)

    def call(x: Tensor, *, module: QModule, tables: StaticTables) -> Tensor:
        out = module(x, **arguments(tables))
        first: Tensor = out if isinstance(out, Tensor) else out[0]
        return first

    parts = {"module": module, "tables": placed}
    return GraphAdapter(module, call, inputs=inputs, outputs=(output,), name=name, parts=parts)
