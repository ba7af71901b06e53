# SPDX-License-Identifier: Apache-2.0
"""Normalizations: RMSNorm as one RMS_NORM, LayerNorm as the eight to ten operators that Circle has for it.

It owns the arithmetic and its sites. Which norm classes of a model family are RMSNorms is registered by that family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.errors import UnknownModuleError
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register


@register(nn.RMSNorm)
class QuantRMSNorm(QModule):
    """Root mean square norm over the last dimension: weight * x / sqrt(mean(x^2) + eps), in float32.

    Serves every class that keeps its gain in `weight` (or has none) and its eps in `eps` or `variance_epsilon`.
    Without a gain there is no `weight` site: the operator's gamma is then exactly one.
    """

    SITES = {"act_in": Role.ACTIVATION, "weight": Role.CONSTANT, "act_out": Role.ACTIVATION}

    weight: nn.Parameter | None

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        absent = () if getattr(fp, "weight", None) is not None else ("weight",)
        return {name: role for name, role in cls.SITES.items() if name not in absent}

    def __init__(self, fp: nn.Module, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        _one_dimension(fp, ctx)
        self.register_parameter("weight", getattr(fp, "weight", None))
        self.eps: float | None = getattr(fp, "eps", getattr(fp, "variance_epsilon", None))

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps  # None as torch.nn.RMSNorm means it
        y = as_float32(self.q("act_in", x))
        weight = None if self.weight is None else as_float32(self.const("weight", self.weight))
        y = F.rms_norm(y, (x.shape[-1],), weight, eps)
        return self.q("act_out", as_dtype(y, x.dtype))


@register(nn.LayerNorm)
class QuantLayerNorm(QModule):
    """Layer norm over the last dimension: (x - mean) / sqrt(variance + eps) * weight + bias, in float32.

    Circle has no LAYER_NORM, so each step is an operator, and has a site, of its own; a step that is the last one
    (no bias, or neither gain nor bias) has the site `act_out`.
    """

    SITES = {
        "act_in": Role.ACTIVATION,
        "mean": Role.ACTIVATION,
        "centered": Role.ACTIVATION,
        "square": Role.ACTIVATION,
        "variance": Role.ACTIVATION,
        "variance_eps": Role.ACTIVATION,
        "inv_std": Role.ACTIVATION,
        "normalized": Role.ACTIVATION,
        "weight": Role.CONSTANT,
        "scaled": Role.ACTIVATION,
        "bias": Role.CONSTANT,
        "act_out": Role.ACTIVATION,
    }

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        absent: tuple[str, ...] = () if fp.weight is not None else ("normalized", "weight")
        absent += () if fp.bias is not None else ("scaled", "bias")
        return {name: role for name, role in cls.SITES.items() if name not in absent}

    def __init__(self, fp: nn.LayerNorm, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        _one_dimension(fp, ctx)
        self.register_parameter("weight", fp.weight)
        self.register_parameter("bias", fp.bias)
        self.eps = float(fp.eps)

    def forward(self, x: Tensor) -> Tensor:
        h = as_float32(self.q("act_in", x))
        centered = self.q("centered", h - self.q("mean", h.mean(-1, keepdim=True)))
        variance = self.q("variance", self.q("square", centered * centered).mean(-1, keepdim=True))
        inv_std = self.q("inv_std", torch.rsqrt(self.q("variance_eps", variance + self.eps)))
        y = centered * inv_std
        if self.weight is not None:
            y = self.q("normalized", y) * as_float32(self.const("weight", self.weight))
        if self.bias is not None:
            y = self.q("scaled", y) + as_float32(self.const("bias", self.bias))
        return self.q("act_out", as_dtype(y, x.dtype))


def _one_dimension(fp: nn.Module, ctx: WrapContext) -> None:
    shape = tuple(getattr(fp, "normalized_shape", (1,)))
    if len(shape) != 1:
        raise UnknownModuleError(
            f"{ctx.path or 'the model'}: {type(fp).__name__} over {shape} has no wrapper; only norms over the last "
            "dimension do. Reshape around it, or register a wrapper of your own"
        )
