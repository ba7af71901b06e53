# SPDX-License-Identifier: Apache-2.0
"""Gemma4: every module of transformers' towers and text model as a wrapper, static export profiles, batches.

It owns what is particular to Gemma4; importing it registers the wrappers. Shared pieces are pyquant.wrap.
"""

from __future__ import annotations

from pyquant.models.gemma4.audio.attention import (
    QuantGemma4AudioAttention,
    QuantGemma4AudioRelPositionalEncoding,
)
from pyquant.models.gemma4.audio.layers import (
    QuantGemma4AudioCausalConv1d,
    QuantGemma4AudioFeedForward,
    QuantGemma4AudioLayer,
    QuantGemma4AudioLightConv1d,
)
from pyquant.models.gemma4.audio.model import QuantGemma4AudioModel
from pyquant.models.gemma4.audio.profiles import AudioProfile, clip_inputs, tokens_of
from pyquant.models.gemma4.audio.subsample import (
    QuantGemma4AudioSubSampleConvProjection,
    QuantGemma4AudioSubSampleConvProjectionLayer,
)
from pyquant.models.gemma4.clipped import QuantGemma4ClippableLinear
from pyquant.models.gemma4.embedder import QuantGemma4MultimodalEmbedder
from pyquant.models.gemma4.generation import QuantGemma4ForConditionalGeneration
from pyquant.models.gemma4.graphs import FusionProfile, SoftTokensProfile
from pyquant.models.gemma4.model import QuantGemma4Model
from pyquant.models.gemma4.norm import QuantGemma4RMSNorm
from pyquant.models.gemma4.profiles import Profile
from pyquant.models.gemma4.text.embedding import QuantGemma4TextScaledWordEmbedding
from pyquant.models.gemma4.text.experts import ExpertsProfile, QuantGemma4TextExperts
from pyquant.models.gemma4.text.layers import QuantGemma4TextAttention, QuantGemma4TextDecoderLayer, QuantGemma4TextMLP
from pyquant.models.gemma4.text.model import QuantGemma4ForCausalLM, QuantGemma4TextModel
from pyquant.models.gemma4.text.per_layer import PerLayerProfile
from pyquant.models.gemma4.text.rotary import QuantGemma4TextRotaryEmbedding
from pyquant.models.gemma4.text.router import QuantGemma4TextRouter
from pyquant.models.gemma4.vision.batches import image_batches, patchify
from pyquant.models.gemma4.vision.layers import (
    QuantGemma4VisionAttention,
    QuantGemma4VisionEncoderLayer,
    QuantGemma4VisionMLP,
)
from pyquant.models.gemma4.vision.model import QuantGemma4VisionEncoder, QuantGemma4VisionModel
from pyquant.models.gemma4.vision.patches import QuantGemma4VisionPatchEmbedder, QuantGemma4VisionPooler
from pyquant.models.gemma4.vision.profiles import VisionProfile

__all__ = [
    "AudioProfile",
    "ExpertsProfile",
    "FusionProfile",
    "PerLayerProfile",
    "Profile",
    "QuantGemma4AudioAttention",
    "QuantGemma4AudioCausalConv1d",
    "QuantGemma4AudioFeedForward",
    "QuantGemma4AudioLayer",
    "QuantGemma4AudioLightConv1d",
    "QuantGemma4AudioModel",
    "QuantGemma4AudioRelPositionalEncoding",
    "QuantGemma4AudioSubSampleConvProjection",
    "QuantGemma4AudioSubSampleConvProjectionLayer",
    "QuantGemma4ClippableLinear",
    "QuantGemma4ForCausalLM",
    "QuantGemma4ForConditionalGeneration",
    "QuantGemma4Model",
    "QuantGemma4MultimodalEmbedder",
    "QuantGemma4RMSNorm",
    "QuantGemma4TextAttention",
    "QuantGemma4TextDecoderLayer",
    "QuantGemma4TextExperts",
    "QuantGemma4TextMLP",
    "QuantGemma4TextModel",
    "QuantGemma4TextRotaryEmbedding",
    "QuantGemma4TextRouter",
    "QuantGemma4TextScaledWordEmbedding",
    "QuantGemma4VisionAttention",
    "QuantGemma4VisionEncoder",
    "QuantGemma4VisionEncoderLayer",
    "QuantGemma4VisionMLP",
    "QuantGemma4VisionModel",
    "QuantGemma4VisionPatchEmbedder",
    "QuantGemma4VisionPooler",
    "SoftTokensProfile",
    "VisionProfile",
    "clip_inputs",
    "image_batches",
    "patchify",
    "tokens_of",
]
