# SPDX-License-Identifier: Apache-2.0
"""The export adapter of every part of the vision tower: one input, one output, and the static tables of one profile.

It owns the calling convention. The tables come from tables.py, the arithmetic is the wrapper's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import Tensor, nn

from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.tables import StaticTables
from pyquant.wrap.base import Phase, QModule


class StaticAdapter(nn.Module):
    """`module(x, **arguments(tables))` as a graph from `input_name` to `output_name`.

    Shares the wrapper's submodules, owns the tables: a second adapter of the same wrapper changes nothing here.
    """

    def __init__(
        self,
        module: QModule,
        tables: StaticTables,
        arguments: Callable[[StaticTables], dict[str, Any]],
        *,
        inputs: dict[str, TensorSpec],
        output: str,
        name: str,
    ) -> None:
        if module.phase is not Phase.FLOAT:  # a float graph is exported on purpose: pyquant.wrap.phase(q, Phase.FLOAT)
            module.require(Phase.QUANTIZED, "export")
        module.refresh_all()
        super().__init__()
        self.module = module
        held = next(chain(module.parameters(), module.buffers()), None)  # a float pooler has none
        self.tables = tables if held is None else tables.to(held.device)
        self.arguments = arguments
        self.input_specs = inputs
        self.output_names = (output,)
        self.name = name
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x, **self.arguments(self.tables))
        first: Tensor = out if isinstance(out, Tensor) else out[0]
        return first

    def train(self, mode: bool = True) -> StaticAdapter:
        """An adapter is for inference; leaves the wrapped module's own flags alone."""
        return self
