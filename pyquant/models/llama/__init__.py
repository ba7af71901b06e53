# SPDX-License-Identifier: Apache-2.0
"""Llama 3, SmolLM2 and other models of transformers' Llama: the decoder of pyquant.decoder, as it is.

It owns what names the family; importing it registers the wrappers.
"""

from __future__ import annotations

from pyquant.decoder.ends import HeadProfile
from pyquant.decoder.graphs import TextProfile
from pyquant.models.llama.profiles import Profile
from pyquant.models.llama.wrappers import (
    QuantLlamaAttention,
    QuantLlamaDecoderLayer,
    QuantLlamaForCausalLM,
    QuantLlamaMLP,
    QuantLlamaModel,
    QuantLlamaRMSNorm,
    QuantLlamaRotaryEmbedding,
)

__all__ = [
    "HeadProfile",
    "Profile",
    "QuantLlamaAttention",
    "QuantLlamaDecoderLayer",
    "QuantLlamaForCausalLM",
    "QuantLlamaMLP",
    "QuantLlamaModel",
    "QuantLlamaRMSNorm",
    "QuantLlamaRotaryEmbedding",
    "TextProfile",
]
