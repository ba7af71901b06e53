# SPDX-License-Identifier: Apache-2.0
"""The gated MLP that Llama, Qwen and Gemma share: down(act(gate(x)) * up(x)).

It owns the input and the product. The three projections and the activation are children, with sites of their own.
"""

from __future__ import annotations

from torch import Tensor

from pyquant.wrap.base import QModule, Role


class QuantGatedMLP(QModule):
    """SwiGLU or GeGLU, by the child `act_fn`: (..., hidden) -> (..., hidden)."""

    CHILDREN = ("gate_proj", "up_proj", "down_proj", "act_fn")
    SITES = {"act_in": Role.ACTIVATION, "gated": Role.ACTIVATION}
    SHARED = (("gate_proj", "up_proj"),)
    PAIRS = (("up_proj", "down_proj"),)

    gate_proj: QModule
    up_proj: QModule
    down_proj: QModule
    act_fn: QModule

    def forward(self, x: Tensor) -> Tensor:
        x = self.q("act_in", x)
        gated = self.q("gated", self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        out: Tensor = self.down_proj(gated)
        return out
