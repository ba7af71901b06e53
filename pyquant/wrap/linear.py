# SPDX-License-Identifier: Apache-2.0
"""Linear layers: FULLY_CONNECTED with a quantized input, kernel, bias and output.

It owns the sites of one matrix product, and the clamps that a model puts around it. The grid of a bias is base.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pyquant.site import Site, TapHandle
from pyquant.wrap import products
from pyquant.wrap.base import Clip, QModule, Role, WrapContext
from pyquant.wrap.registry import register


@register(nn.Linear)
class QuantLinear(QModule):
    """`nn.Linear`: (..., in_features) -> (..., out_features).

    `clip_in` and `clip_out` are (low, high) bounds of the input and the output, None for no bound. They are applied as
    clamps while floating, and become the saturation of the sites once quantized.
    """

    SITES = {"act_in": Role.ACTIVATION, "weight": Role.WEIGHT, "act_out": Role.ACTIVATION}
    BIASES = {"bias": ("act_in", "weight", "act_out")}

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, fp: nn.Linear, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.weight = fp.weight
        self.register_parameter("bias", fp.bias)
        self.in_features, self.out_features = fp.in_features, fp.out_features

    def forward(self, x: Tensor, *, clip_in: Clip | None = None, clip_out: Clip | None = None) -> Tensor:
        x = self.q("act_in", x, clip=clip_in)
        weight, bias = self.const("weight", self.weight), self.qbias("bias", self.bias)
        x = products.linear(x, weight, bias, statistics=self.observes)
        return self.q("act_out", x, clip=clip_out)

    def watch_rows(self, see: Callable[[int, Tensor], None]) -> TapHandle:
        """Let `see(0, rows)` have the rows (N, in_features) that the weight multiplies, until the handle is removed."""

        def tap(site: Site, x: Tensor, out: Tensor, **_: object) -> None:
            see(0, out.reshape(-1, out.shape[-1]))

        return self.site("act_in").tap(tap)
