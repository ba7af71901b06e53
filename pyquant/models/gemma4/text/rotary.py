# SPDX-License-Identifier: Apache-2.0
"""Rotary tables of Gemma4's two kinds of text layers, by HF's one module.

It owns the names: transformers' layer types, and the variants of pyquant.decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyquant.decoder.model import DecoderRotary
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.registry import register

SLIDING, FULL = "sliding_attention", "full_attention"
VARIANTS = {SLIDING: "sliding", FULL: "full"}  # transformers' layer type -> LayerKind.variant
TYPES = {variant: layer_type for layer_type, variant in VARIANTS.items()}


@register(hf_class("Gemma4TextRotaryEmbedding"))
class QuantGemma4TextRotaryEmbedding(DecoderRotary):
    """cos and sin of sliding and of full layers, whose heads have other sizes and other frequencies.

    The proportional tables of full layers have cos 1 and sin 0 where nothing rotates, so that all channels are one
    rotation.
    """

    @classmethod
    def scalings(cls, fp: Any) -> tuple[float, ...]:
        return tuple(float(getattr(fp, f"{layer_type}_attention_scaling")) for layer_type in fp.layer_types)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """position_ids (B, S) -> (cos, sin) of layers of `layer_type`, each (B, S, head_dim), in x's dtype."""
        cos, sin = self.float_rotary(x, position_ids, layer_type)
        return self.q("cos", cos), self.q("sin", sin)

    def compute(self, x: Tensor, position_ids: Tensor, variant: str = "") -> tuple[Tensor, Tensor]:
        at = position_ids if position_ids.dim() == 2 else position_ids[0]
        cos, sin = self.float_rotary(x, at, TYPES[variant])
        return cos, sin

    def frequencies(self, variant: str = "") -> tuple[Tensor, float]:
        rotary, name = self.float_rotary, TYPES[variant]
        frequencies: Tensor = getattr(rotary, f"{name}_inv_freq")
        return frequencies.detach().float().cpu(), float(getattr(rotary, f"{name}_attention_scaling"))

    def rope_type(self, variant: str = "") -> str:
        types: Mapping[str, str] = self.float_rotary.rope_type
        return types[TYPES[variant]]
