# SPDX-License-Identifier: Apache-2.0
"""Modules that leave every value as it is: no site, since the output inherits the input's grid.

It owns Identity, Dropout (quantization is inference) and Flatten. Modules with arithmetic are elsewhere.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyquant.wrap.base import QModule, WrapContext
from pyquant.wrap.registry import register


@register(nn.Identity, nn.Dropout)
class QuantPassthrough(QModule):
    """Returns its input. A Dropout behaves as in eval mode, whatever its `training` flag."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@register(nn.Flatten)
class QuantFlatten(QModule):
    """`nn.Flatten(start_dim, end_dim)`: a RESHAPE."""

    def __init__(self, fp: nn.Flatten, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.start_dim, self.end_dim = fp.start_dim, fp.end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)
