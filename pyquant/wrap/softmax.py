# SPDX-License-Identifier: Apache-2.0
"""Softmax as a module: one SOFTMAX over one dimension.

It owns `nn.Softmax`. The softmax inside attention belongs to attention.py, which handles masks.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.errors import UnknownModuleError
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register


@register(nn.Softmax)
class QuantSoftmax(QModule):
    """`nn.Softmax(dim)`, computed in float32; the output's range is known a priori."""

    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.SOFTMAX}

    def __init__(self, fp: nn.Softmax, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        if fp.dim is None:
            raise UnknownModuleError(
                f"{ctx.path or 'the model'}: nn.Softmax() with dim=None guesses its dimension from the input's rank; "
                "give it one, such as nn.Softmax(dim=-1)"
            )
        self.dim = int(fp.dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.softmax(as_float32(self.q("act_in", x)), dim=self.dim)
        return self.q("act_out", as_dtype(y, x.dtype))
