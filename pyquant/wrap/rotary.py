# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings, 1-D and axial, without a negation.

It owns the rotation and the sign that is folded into the sine table. The tables themselves come from the model's own
rotary module, or from an export profile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyquant.wrap.base import QModule, Role, WrapContext


class RotaryTables(NamedTuple):
    """cos and sin, broadcastable to (batch, seq, heads, head_dim); sin is negative where the half-rotation negates.

    x * cos + rotate_half(x) * sin, with rotate_half(x) = (-x2, x1), is x * cos + (x2, x1) * (-sin1, sin2): the same
    products with the sign moved, so equal bit for bit, and one NEG (whose int16 and zero-point behaviour differs
    between runtimes) less.
    """

    cos: Tensor
    signed_sin: Tensor

    @classmethod
    def of(cls, position_embeddings: tuple[Tensor, Tensor], parts: int) -> RotaryTables:
        """From the (cos, sin) of shape (batch, seq, head_dim) that HF's rotary modules return; `parts` as in Rotary."""
        if isinstance(position_embeddings, cls):
            return position_embeddings
        cos, sin = position_embeddings
        half = sin.shape[-1] // (2 * parts)
        sign = torch.ones(2 * parts, half, dtype=sin.dtype, device=sin.device)
        sign[0::2] = -1
        return cls(cos.unsqueeze(2), (sin * sign.flatten()).unsqueeze(2))


class Rotary(QModule):
    """Rotates (batch, seq, heads, head_dim).

    `parts` equal parts of head_dim rotate apart from each other: 1 for text, 2 for the x and y of a patch. `unit`
    False: the tables are scaled beyond [-1, 1] (YaRN does), so their range is observed.
    """

    SITES = {
        "cos": Role.UNIT,
        "sin": Role.UNIT,
        "mul_cos": Role.ACTIVATION,
        "mul_sin": Role.ACTIVATION,
        "act_out": Role.ACTIVATION,
    }

    def __init__(self, ctx: WrapContext, *, parts: int = 1, unit: bool = True) -> None:
        super().__init__(None, ctx)
        self.parts = parts
        if not unit:
            self.sites.update({name: ctx.site(name, Role.ACTIVATION) for name in ("cos", "sin")})

    def forward(self, x: Tensor, tables: RotaryTables) -> Tensor:
        half = x.shape[-1] // (2 * self.parts)
        # The halves of every part change places: slices and CONCATENATION of one tensor, so all on one grid.
        order = [i ^ 1 for i in range(2 * self.parts)]
        swapped = torch.cat([x[..., i * half : (i + 1) * half] for i in order], dim=-1)
        straight = self.q("mul_cos", x * self.q("cos", tables.cos))
        crossed = self.q("mul_sin", swapped * self.q("sin", tables.signed_sin))
        return self.q("act_out", straight + crossed)
