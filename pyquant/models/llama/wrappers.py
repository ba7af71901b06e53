# SPDX-License-Identifier: Apache-2.0
"""The wrappers of transformers' Llama: RMSNorm, rotary embedding, scaled or not, grouped heads, SwiGLU, tied or not.

It owns naming the HF classes. All arithmetic is pyquant.decoder's and pyquant.wrap's.
"""

from __future__ import annotations

from pyquant.decoder.causal_lm import TextCausalLM
from pyquant.decoder.layers import DecoderAttention, DecoderLayer
from pyquant.decoder.model import DecoderModel, DecoderRotary
from pyquant.wrap.gated_mlp import QuantGatedMLP
from pyquant.wrap.hf import Home
from pyquant.wrap.norm import QuantRMSNorm
from pyquant.wrap.registry import register

_HF = Home("llama")


@register(_HF.cls("LlamaRMSNorm"))
class QuantLlamaRMSNorm(QuantRMSNorm):
    """The norm of hidden states."""


@register(_HF.cls("LlamaMLP"))
class QuantLlamaMLP(QuantGatedMLP):
    """SwiGLU."""


@register(_HF.cls("LlamaRotaryEmbedding"))
class QuantLlamaRotaryEmbedding(DecoderRotary):
    """One position a token; the frequencies are HF's, whatever `rope_parameters` make of them."""


@register(_HF.cls("LlamaAttention"))
class QuantLlamaAttention(DecoderAttention):
    """Queries and keys are rotated as they are, without norms."""

    ROTARY = _HF.cls("LlamaRotaryEmbedding")


@register(_HF.cls("LlamaDecoderLayer"))
class QuantLlamaDecoderLayer(DecoderLayer):
    """Attention and MLP, each after a norm, each added to the residual stream."""


@register(_HF.cls("LlamaModel"))
class QuantLlamaModel(DecoderModel):
    """Embedding, layers, norm."""


@register(_HF.cls("LlamaForCausalLM"))
class QuantLlamaForCausalLM(TextCausalLM):
    """The model with its head."""
