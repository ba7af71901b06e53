# SPDX-License-Identifier: Apache-2.0
"""From mel frames to hidden states: two convolutions that halve time and frequency, and a projection.

It owns the masks between them. Values are channels last (batch, time, frequency, channels), as Circle's convolution
takes them; HF's arguments and results are channels first.
"""

from __future__ import annotations

from torch import Tensor

from pyquant.models.gemma4.audio.mask import truth
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.base import Phase, QModule, Role
from pyquant.wrap.conv import QuantConv2d
from pyquant.wrap.dtype import as_dtype
from pyquant.wrap.linear import QuantLinear
from pyquant.wrap.registry import register


@register(hf_class("Gemma4AudioSubSampleConvProjectionLayer"))
class QuantGemma4AudioSubSampleConvProjectionLayer(QModule):
    """Mask, convolution, norm over the channels, ReLU."""

    CHILDREN = ("conv", "norm", "act")
    SITES = {"act_in": Role.ACTIVATION, "mask": Role.ACTIVATION, "masked": Role.ACTIVATION}

    conv: QuantConv2d
    norm: QModule
    act: QModule

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None = None, *, channels_last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C, T, F), and a mask (B, T) of bool, integers or floats, 1 for a frame of a clip -> (B, C', T', F') and
        its mask, each second frame's."""
        x = hidden_states if channels_last else _channels_last(hidden_states)
        x, mask = self._masked(self.q("act_in", x), mask)
        x = self.act(self.norm(self.conv(as_dtype(x, self.conv.weight.dtype), channels_last=True)))
        return x if channels_last else x.permute(0, 3, 1, 2), None if mask is None else mask[:, ::2]

    def _masked(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if mask is None:
            if self.phase is Phase.CALIBRATE:  # what a padded batch will need
                self.q("mask", truth(x))
                self.q("masked", x)
            return x, None
        observed = None if self.state.explicit else truth(x)
        valid = self.q("mask", as_dtype(mask, x.dtype), observed=observed)
        return self.q("masked", x * valid[:, :, None, None]), valid if mask.is_floating_point() else mask


@register(hf_class("Gemma4AudioSubSampleConvProjection"))
class QuantGemma4AudioSubSampleConvProjection(QModule):
    """A quarter of the frames, as wide as the model."""

    CHILDREN = ("layer0", "layer1", "input_proj_linear")

    layer0: QuantGemma4AudioSubSampleConvProjectionLayer
    layer1: QuantGemma4AudioSubSampleConvProjectionLayer
    input_proj_linear: QuantLinear

    @property
    def bins(self) -> int:
        """Frequencies that are left after both layers."""
        return self.input_proj_linear.in_features // int(self.layer1.conv.weight.shape[0])

    def forward(
        self, input_features: Tensor, input_features_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, mel bins), mask (B, T) -> (B, ceil(T / 4), D) and its mask."""
        x, mask = self.layer0(input_features.unsqueeze(-1), input_features_mask, channels_last=True)
        x, mask = self.layer1(x, mask, channels_last=True)
        out: Tensor = self.input_proj_linear(x.flatten(2))
        return out, mask


def _channels_last(x: Tensor) -> Tensor:
    """A RESHAPE for the one channel of the features."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, height, width, 1) if channels == 1 else x.permute(0, 2, 3, 1)
