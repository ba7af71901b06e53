# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's text model: the decoder of pyquant.decoder, with visual features added after the first layers (deepstack).

It owns what Qwen3-VL does differently: three position axes, deepstack sites and their graph inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.graphs import StackInputs, TextProfile, float_type
from pyquant.decoder.layers import DecoderAttention, DecoderLayer
from pyquant.decoder.model import DecoderModel, DecoderRotary
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.deepstack import dense_addends
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.gated_mlp import QuantGatedMLP
from pyquant.wrap.norm import QuantRMSNorm
from pyquant.wrap.registry import register

TAPS = 3  # what every released Qwen3-VL has; a whole model counts those of its vision tower


@register(hf_class("Qwen3VLTextRMSNorm"))
class QuantQwen3VLTextRMSNorm(QuantRMSNorm):
    """The norm of hidden states, and of each head's queries and keys."""


@register(hf_class("Qwen3VLTextMLP"))
class QuantQwen3VLTextMLP(QuantGatedMLP):
    """SwiGLU."""


@register(hf_class("Qwen3VLTextAttention"))
class QuantQwen3VLTextAttention(DecoderAttention):
    """Queries and keys are normalized head by head before they are rotated."""

    OPTIONAL = ()
    ROTARY = hf_class("Qwen3VLTextRotaryEmbedding")

    def as_export_module(self, profile: TextProfile) -> GraphAdapter:
        """As DecoderAttention. Raises ProfileError for deepstack inputs, which follow a layer of the whole model."""
        check_deepstack(profile, self, 0)
        return super().as_export_module(profile)


@register(hf_class("Qwen3VLTextDecoderLayer"))
class QuantQwen3VLTextDecoderLayer(DecoderLayer):
    """Attention and MLP, each after a norm, each added to the residual stream."""

    def as_export_module(self, profile: TextProfile) -> GraphAdapter:
        """As DecoderLayer. Raises ProfileError for deepstack inputs, which follow a layer of the whole model."""
        check_deepstack(profile, self, 0)
        return super().as_export_module(profile)


@register(hf_class("Qwen3VLTextRotaryEmbedding"))
class QuantQwen3VLTextRotaryEmbedding(DecoderRotary):
    """Interleaved multimodal rotary tables: time, height and width."""

    AXES = 3


@dataclass(frozen=True)
class Qwen3VLTextProfile(TextProfile):
    """A TextProfile with `deepstack`: how many layers have a dense addend (B, S, D) as input, `deepstack_{k}` for the
    stack, `deepstack` for a layer; 0 for decode and for prompts without images."""

    deepstack: int = field(default=0, kw_only=True)
    LEAST = {**TextProfile.LEAST, "deepstack": 0}


@register(hf_class("Qwen3VLTextModel"))
class QuantQwen3VLTextModel(DecoderModel):
    """The stack of decoder layers, with visual features added after the first of them (deepstack).

    After layer k < taps, `deepstack_{k}` is the dense addend of layer k (zero at text tokens) and `deepstack_out_{k}`
    the hidden states from there on, also where nothing was added, so that calls with and without images are the same
    arithmetic.
    """

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.taps = 0
        self.set_taps(min(TAPS, len(self.layers)))

    def set_taps(self, taps: int) -> None:
        """How many layers have a deepstack addend. The wrapper of a whole model calls it, while the tree is built."""
        assert 0 <= taps <= len(self.layers), f"{taps} deepstack features for {len(self.layers)} layers"
        for k in range(taps, self.taps):
            del self.sites[f"deepstack_{k}"], self.sites[f"deepstack_out_{k}"]
        for k in range(self.taps, taps):
            self.add_site(f"deepstack_{k}", Role.ACTIVATION)
            self.add_site(f"deepstack_out_{k}", Role.ACTIVATION)
        self.taps = taps

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As DecoderModel. position_ids: (B, S), (3, B, S), or (4, B, S) whose first row are the text positions.
        visual_pos_masks (B, S) bool marks where the rows of each deepstack_visual_embeds[k] (visual tokens, D) are
        added, after layer k."""

        def extras(tokens: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
            where = None if visual_pos_masks is None else visual_pos_masks.to(tokens.device)
            shape = (*tokens.shape[:2], int(self.config.hidden_size))
            return named_addends(dense_addends(where, deepstack_visual_embeds, shape, dtype, self.taps))

        return self.run(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, kwargs, extras)

    def step(self, i: int, hidden: Tensor, given: StackInputs) -> Tensor:
        """Layer i and the addend that follows it."""
        hidden = super().step(i, hidden, given)
        if i >= self.taps:
            return hidden
        addend = given.extras.get(f"deepstack_{i}", given.extras.get("deepstack"))
        if addend is not None:
            hidden = hidden + self.q(f"deepstack_{i}", addend)
        return self.q(f"deepstack_out_{i}", hidden)

    def extra_inputs(self, profile: TextProfile) -> Mapping[str, TensorSpec]:
        """The dense addends. Raises ProfileError for more than the model has sites for."""
        count = check_deepstack(profile, self, self.taps)
        spec = TensorSpec((profile.batch_size, profile.seq_len, self.config.hidden_size), float_type(self))
        if profile.layer is None:
            return dict.fromkeys((f"deepstack_{k}" for k in range(count)), spec)
        return {"deepstack": spec} if profile.layer < count else {}


def check_deepstack(profile: TextProfile, module: QModule, taps: int) -> int:
    """How many dense addends `profile` has. Raises ProfileError for more than `taps`, which `module` has sites for."""
    count = profile.deepstack if isinstance(profile, Qwen3VLTextProfile) else 0
    if count > taps:
        raise ProfileError(
            f"the profile has {count} deepstack inputs, but {type(module).__name__} adds {taps}; set "
            f"TextProfile(deepstack={taps})"
        )
    return count


def named_addends(addends: Sequence[Tensor]) -> dict[str, Tensor]:
    """Dense addends by the names of their graph inputs."""
    return {f"deepstack_{k}": addend for k, addend in enumerate(addends)}
