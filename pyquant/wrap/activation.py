# SPDX-License-Identifier: Apache-2.0
"""Activation functions: one operator each, except SiLU, which Circle spells LOGISTIC and MUL.

It owns the torch.nn classes; transformers' own activation objects are mapped onto these in hf_activations.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.registry import register


class QuantGELU(QModule):
    """GELU, exact (`approximate="none"`) or by tanh (`"tanh"`), as one operator."""

    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    approximate = "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.q("act_out", F.gelu(self.q("act_in", x), approximate=self.approximate))


@register(nn.GELU)
class QuantTorchGELU(QuantGELU):
    """`nn.GELU`, exact or approximated by tanh, as the module is set."""

    def __init__(self, fp: nn.GELU, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.approximate = fp.approximate


class QuantTanhGELU(QuantGELU):
    """GELU by tanh, for classes that are that by definition."""

    approximate = "tanh"


@register(nn.SiLU)
class QuantSiLU(QModule):
    """SiLU: x * sigmoid(x)."""

    SITES = {"act_in": Role.ACTIVATION, "sigmoid": Role.SIGMOID, "act_out": Role.ACTIVATION}

    def forward(self, x: Tensor) -> Tensor:
        x = self.q("act_in", x)
        return self.q("act_out", x * self.q("sigmoid", torch.sigmoid(x)))


@register(nn.ReLU)
class QuantReLU(QModule):
    """ReLU. Its output has a range of its own, half of the input's."""

    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.ACTIVATION}

    def forward(self, x: Tensor) -> Tensor:
        return self.q("act_out", F.relu(self.q("act_in", x)))


@register(nn.Sigmoid)
class QuantSigmoid(QModule):
    """Sigmoid; the output's range is known a priori."""

    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.SIGMOID}

    def forward(self, x: Tensor) -> Tensor:
        return self.q("act_out", torch.sigmoid(self.q("act_in", x)))


@register(nn.Tanh)
class QuantTanh(QModule):
    """Tanh; the output's range is known a priori."""

    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.TANH}

    def forward(self, x: Tensor) -> Tensor:
        return self.q("act_out", torch.tanh(self.q("act_in", x)))


@register(nn.GLU)
class QuantGLU(QModule):
    """Gated linear unit: the first half of `dim` times the sigmoid of the second.

    One without a module (`fp` None) splits the last dimension.
    """

    SITES = {"act_in": Role.ACTIVATION, "sigmoid": Role.SIGMOID, "act_out": Role.ACTIVATION}

    def __init__(self, fp: nn.GLU | None, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.dim = -1 if fp is None else int(fp.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError for a dimension that has no two equal halves."""
        if x.shape[self.dim] % 2:
            raise InputError(f"{self.path or 'the GLU'} halves dimension {self.dim} of {tuple(x.shape)}: it is odd")
        value, gate = self.q("act_in", x).chunk(2, dim=self.dim)
        return self.q("act_out", value * self.q("sigmoid", torch.sigmoid(gate)))
