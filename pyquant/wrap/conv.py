# SPDX-License-Identifier: Apache-2.0
"""Convolutions: CONV_2D and DEPTHWISE_CONV_2D with a quantized input, kernel, bias and output.

It owns their sites and the layouts: Circle computes on (batch, height, width, channels), torch on channels first. A
model that has its values channels last already passes `channels_last`, and then no operator transposes them.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.errors import InputError, UnknownModuleError
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.registry import register


class QuantConvolution(QModule):
    """What convolutions over one and two axes share. Padding is zeros, before and after each axis."""

    SITES = {"act_in": Role.ACTIVATION, "weight": Role.WEIGHT, "act_out": Role.ACTIVATION}
    BIASES = {"bias": ("act_in", "weight", "act_out")}
    AXES = 2

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        if fp.padding_mode != "zeros" or fp.groups not in (1, fp.in_channels):
            raise UnknownModuleError(
                f"{ctx.path or 'the model'}: {fp} has no wrapper; convolutions with padding_mode='zeros' and groups=1 "
                "or groups=in_channels do. Reshape around it, or register a wrapper of your own"
            )
        self.weight = fp.weight
        self.register_parameter("bias", fp.bias)
        self.stride, self.dilation, self.groups = tuple(fp.stride), tuple(fp.dilation), int(fp.groups)
        self.padding = self.pads(fp)

    def pads(self, fp: Any) -> tuple[tuple[int, int], ...]:
        """(before, after) for each axis, whatever torch calls it."""
        if fp.padding == "valid":
            return ((0, 0),) * self.AXES
        if fp.padding == "same":
            totals = [step * (size - 1) for step, size in zip(fp.dilation, fp.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((size, size) for size in fp.padding)

    def product(self, x: Tensor) -> Tensor:
        """(B, H, W, C), padded on its axes -> (B, H', W', O)."""
        axes = [pad for axis in reversed(self.padding) for pad in axis]
        flat = [0, 0, *axes, *[0] * (4 - len(axes))]
        x = self.q("act_in", x)
        x = F.pad(x, flat) if any(flat) else x
        weight = self.const("weight", self.weight)
        lines = 2 - self.AXES  # of a height that the kernel does not have
        y = F.conv2d(
            x.permute(0, 3, 1, 2),
            weight.unsqueeze(2) if lines else weight,
            self.qbias("bias", self.bias),
            stride=(*[1] * lines, *self.stride),
            dilation=(*[1] * lines, *self.dilation),
            groups=self.groups,
        )
        return self.q("act_out", y.permute(0, 2, 3, 1))

    def check(self, x: Tensor) -> None:
        """Raise InputError for an input without a batch: its layout would be another one."""
        if x.dim() != self.AXES + 2:
            raise InputError(
                f"{type(self).__name__} {self.path!r} takes a batch of {self.AXES + 2} dimensions, got "
                f"{tuple(x.shape)}; unsqueeze one"
            )


@register(nn.Conv2d)
class QuantConv2d(QuantConvolution):
    """`nn.Conv2d`: (B, C, H, W) -> (B, O, H', W'); with `channels_last`, (B, H, W, C) -> (B, H', W', O)."""

    def forward(self, x: Tensor, *, channels_last: bool = False) -> Tensor:
        self.check(x)
        return self.product(x) if channels_last else self.product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register(nn.Conv1d)
class QuantConv1d(QuantConvolution):
    """`nn.Conv1d`: (B, C, W) -> (B, O, W'); with `channels_last`, (B, W, C) -> (B, W', O). A Conv2d of height 1."""

    AXES = 1

    def forward(self, x: Tensor, *, channels_last: bool = False) -> Tensor:
        self.check(x)
        if channels_last:
            return self.product(x.unsqueeze(1)).squeeze(1)
        return self.product(x.transpose(1, 2).unsqueeze(1)).squeeze(1).transpose(1, 2)
