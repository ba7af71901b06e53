# SPDX-License-Identifier: Apache-2.0
"""Gemma4's whole audio tower: mel frames to soft tokens.

It owns the order of things, HF's calling convention, and the graph with its mask. Layers are layers.py, masks mask.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.audio.attention import QuantGemma4AudioAttention, QuantGemma4AudioRelPositionalEncoding
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.models.gemma4.audio.clips import clip_by_clip
from pyquant.models.gemma4.audio.mask import BlockMask
from pyquant.models.gemma4.audio.profiles import AudioProfile, require_audio_profile
from pyquant.models.gemma4.audio.subsample import QuantGemma4AudioSubSampleConvProjection
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule, WrapContext
from pyquant.wrap.dtype import as_float32
from pyquant.wrap.hf_model import QModel
from pyquant.wrap.registry import register
from pyquant.wrap.snapshot import Snapshot


@register(hf_class("Gemma4AudioModel"))
class QuantGemma4AudioModel(QModel):
    """Clips as mel frames -> soft tokens, a quarter as many, and which of them are of a clip.

    The frames of padding teach calibration nothing: while calibrating, each clip of a padded batch runs alone, without
    its padding, and the soft tokens of padding are zeros.
    """

    CHILDREN = ("subsample_conv_projection", "rel_pos_enc", "layers", "output_proj")
    OUTPUT = BaseModelOutputWithPooling
    BLOCKS = "layers"

    subsample_conv_projection: QuantGemma4AudioSubSampleConvProjection
    rel_pos_enc: QuantGemma4AudioRelPositionalEncoding
    layers: nn.ModuleList
    output_proj: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        cap = float(fp.config.attention_logit_cap)
        self.block_mask = BlockMask(ctx.child("block_mask"), Chunks.of(fp.config), cap)
        timescales = fp.rel_pos_enc.inv_timescales
        self.snapshot = Snapshot.of(fp.rel_pos_enc, ctx.child("rel_pos_enc").path, timescales)
        for layer, own in zip(self.layers, fp.layers, strict=True):
            attention = layer.get_submodule("self_attn")
            assert isinstance(attention, QuantGemma4AudioAttention), f"{type(attention).__name__} has no relative keys"
            attention.compute_constants(own.self_attn, timescales)
        self.mel_bins = 4 * self.subsample_conv_projection.bins

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """input_features (B, T, mel bins), attention_mask (B, T), true for a frame of a clip (None: all are)
        -> last_hidden_state (B, ceil(T / 4), output_proj_dims), attention_mask (B, ceil(T / 4)).
        """
        hf.refuse_recording(kwargs, self.config)
        self._check(input_features, attention_mask)
        tokens, valid = self._in_phase(input_features, attention_mask)
        out = hf.make_output(self.output_type, last_hidden_state=tokens, attention_mask=valid)
        return hf.as_called(out, kwargs, self.config)

    def _in_phase(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.observes or mask is None or bool((mask != 0).all()):
            return self.tokens(features, mask)
        tokens = clip_by_clip(lambda clip, own: self.tokens(clip, own)[0], features, mask)
        if tokens is None:
            raise InputError(
                f"attention_mask {tuple(mask.shape)} has no frame of a clip: there is nothing to calibrate with; leave "
                "the batch out"
            )
        return tokens, mask[:, ::2][:, ::2]

    def tokens(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The soft tokens of a batch, and their mask, without more ado."""
        hidden, valid = self.subsample_conv_projection(features, mask)
        if valid is None:
            known = torch.ones(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
        else:
            known = as_float32(valid)
        block_mask = self.block_mask(known)
        for layer in self.layers[: self.config.num_hidden_layers]:  # positions are constants in them
            hidden = self.run_block(layer, _layer, hidden, block_mask)
        return self.output_proj(hidden), valid

    def _check(self, features: Tensor, mask: Tensor | None) -> None:
        if features.dim() != 3 or (mask is not None and mask.shape != features.shape[:2]):
            raise InputError(
                "the audio model takes input_features (batch, frames, mel bins) and attention_mask (batch, frames), "
                f"true for a frame of a clip; got {tuple(features.shape)} and "
                f"{None if mask is None else tuple(mask.shape)}"
            )

    def as_export_module(self, profile: AudioProfile) -> GraphAdapter:
        """input_features (B, T, mel bins), attention_mask (B, T) of 1.0 and 0.0 -> soft_tokens (B, ceil(T / 4), D).

        Both float32. The mask is an input, so that the graph takes every clip that is not longer; see AudioProfile.
        """
        require_audio_profile(profile, self)
        shape = (profile.batch_size, profile.length)
        inputs = {"input_features": TensorSpec((*shape, self.mel_bins)), "attention_mask": TensorSpec(shape)}

        def call(input_features: Tensor, attention_mask: Tensor, *, module: QuantGemma4AudioModel) -> Tensor:
            return module.tokens(input_features, attention_mask)[0]

        return GraphAdapter(
            self,
            call,
            inputs=inputs,
            outputs=("soft_tokens",),
            name=f"gemma4_{profile.name}",
            parts={"module": self},
        )


def _layer(layer: nn.Module, hidden: Tensor, block_mask: AdditiveMask) -> Tensor:
    out: Tensor = layer(hidden, block_mask)
    return out
