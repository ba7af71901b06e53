# SPDX-License-Identifier: Apache-2.0
"""One conformer layer of Gemma4's audio tower and what it is made of, but for the attention.

It owns half-step feed-forwards, the light convolution and the order of things. Attention is attention.py; clipped
linears and the norm are those of all of Gemma4; the convolution is that of pyquant.wrap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyquant.models.gemma4.audio.adapter import layer_graph
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.models.gemma4.audio.profiles import AudioProfile
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap import hf
from pyquant.wrap.activation import QuantGLU
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import Clip, QModule, Role, WrapContext
from pyquant.wrap.conv import QuantConv1d
from pyquant.wrap.dtype import float_parameter
from pyquant.wrap.registry import register

# The checkpoints' bound is 1e10: in float32 and bfloat16 no value that means something is near it, and quantized it is
# the saturation of the site before. A smaller one, as any in float16 is, becomes a clamp with a site of its own.
_NO_BOUND = 1e9


class Bounded(QModule):
    """A wrapper with HF's clamps at +-gradient_clipping. `CLIPPED`: the sites of the clamps, where they are needed."""

    CLIPPED: tuple[str, ...] = ()

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        dtype = float_parameter(fp).dtype
        bound = min(float(fp.gradient_clipping), torch.finfo(dtype).max)
        self.bounds: Clip | None = (-bound, bound) if bound < _NO_BOUND else None
        for name in self.CLIPPED if self.bounds is not None else ():
            self.add_site(name, Role.ACTIVATION)

    def clipped(self, name: str, x: Tensor) -> Tensor:
        """`x` within the bounds; itself where there are none."""
        return x if self.bounds is None else self.q(name, x, clip=self.bounds)


@register(hf_class("Gemma4AudioFeedForward"))
class QuantGemma4AudioFeedForward(Bounded):
    """norm, two clipped linears, norm, times a factor (one half), added to the residual stream."""

    CHILDREN = ("pre_layer_norm", "ffw_layer_1", "act_fn", "ffw_layer_2", "post_layer_norm")
    SITES = {"act_in": Role.ACTIVATION, "scaled": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    CLIPPED = ("clipped_in", "clipped_out")

    pre_layer_norm: QModule
    ffw_layer_1: QModule
    act_fn: QModule
    ffw_layer_2: QModule
    post_layer_norm: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.factor = float(fp.post_layer_scale)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = self.q("act_in", hidden_states)
        fed = self.act_fn(self.ffw_layer_1(self.pre_layer_norm(self.clipped("clipped_in", x))))
        fed = self.post_layer_norm(self.clipped("clipped_out", self.ffw_layer_2(fed)))
        return self.q("act_out", self.q("scaled", fed * self.factor) + x)


@register(hf_class("Gemma4AudioCausalConv1d"))
class QuantGemma4AudioCausalConv1d(QuantConv1d):
    """A convolution that sees the past alone: all of its padding is before the first value."""

    def pads(self, fp: nn.Conv1d) -> tuple[tuple[int, int], ...]:
        ((before, after),) = super().pads(fp)
        reach = (fp.kernel_size[0] - 1) * fp.dilation[0] + 1 - fp.stride[0]
        return ((before + reach, after),)


@register(hf_class("Gemma4AudioLightConv1d"))
class QuantGemma4AudioLightConv1d(Bounded):
    """norm, gated linear unit, causal convolution of each channel, norm, activation, linear, added to the residual."""

    CHILDREN = ("pre_layer_norm", "linear_start", "depthwise_conv1d", "conv_norm", "act_fn", "linear_end")
    SITES = {"act_in": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    CLIPPED = ("clipped",)

    pre_layer_norm: QModule
    linear_start: QModule
    depthwise_conv1d: QuantConv1d
    conv_norm: QModule
    act_fn: QModule
    linear_end: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.glu = QuantGLU(None, ctx.child("glu"))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = self.q("act_in", hidden_states)
        mixed = self.depthwise_conv1d(self.glu(self.linear_start(self.pre_layer_norm(x))), channels_last=True)
        out = self.linear_end(self.act_fn(self.conv_norm(self.clipped("clipped", mixed))))
        return self.q("act_out", out + x)


@register(hf_class("Gemma4AudioLayer"))
class QuantGemma4AudioLayer(Bounded):
    """Half a feed-forward, attention, light convolution, half a feed-forward, norm."""

    CHILDREN = (
        "feed_forward1",
        "norm_pre_attn",
        "self_attn",
        "norm_post_attn",
        "lconv1d",
        "feed_forward2",
        "norm_out",
    )
    SITES = {"attn_residual": Role.ACTIVATION}
    CLIPPED = ("clipped_in", "clipped_attn", "clipped_out")

    feed_forward1: QModule
    norm_pre_attn: QModule
    self_attn: QModule
    norm_post_attn: QModule
    lconv1d: QModule
    feed_forward2: QModule
    norm_out: QModule

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | AdditiveMask | None = None,
        position_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, S, D) -> (B, S, D); the other arguments as QuantGemma4AudioAttention takes them."""
        hf.refuse_recording(kwargs)
        x = self.feed_forward1(hidden_states)
        attended, _ = self.self_attn(
            self.norm_pre_attn(self.clipped("clipped_in", x)), position_embeddings, attention_mask
        )
        x = self.q("attn_residual", self.norm_post_attn(self.clipped("clipped_attn", attended)) + x)
        x = self.feed_forward2(self.lconv1d(x))
        out: Tensor = self.norm_out(self.clipped("clipped_out", x))
        return out

    def as_export_module(self, profile: AudioProfile) -> GraphAdapter:
        """hidden_states (B, S, D), attention_mask (1, B * blocks, size, context) -> hidden_states_out, for one
        `profile`."""
        return layer_graph(self, profile, Chunks.of(self.config), int(self.config.hidden_size), "gemma4_audio_layer")
