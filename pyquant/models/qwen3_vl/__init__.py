# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL: every module of transformers' model as a wrapper, static export profiles, the bundle and its host side.

It owns what is particular to Qwen3-VL; importing it registers the wrappers. Shared pieces are pyquant.wrap.
"""

from __future__ import annotations

from pyquant.decoder.ends import HeadProfile
from pyquant.models.qwen3_vl.batches import patchify, prompt_batch
from pyquant.models.qwen3_vl.generation import QuantQwen3VLForConditionalGeneration
from pyquant.models.qwen3_vl.graphs import FusionProfile, WholeProfile
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.models.qwen3_vl.profiles import Profile
from pyquant.models.qwen3_vl.text import (
    QuantQwen3VLTextAttention,
    QuantQwen3VLTextDecoderLayer,
    QuantQwen3VLTextMLP,
    QuantQwen3VLTextModel,
    QuantQwen3VLTextRMSNorm,
    QuantQwen3VLTextRotaryEmbedding,
)
from pyquant.models.qwen3_vl.text import Qwen3VLTextProfile as TextProfile
from pyquant.models.qwen3_vl.tower import QuantQwen3VLVisionModel
from pyquant.models.qwen3_vl.vision import (
    QuantQwen3VLVisionAttention,
    QuantQwen3VLVisionBlock,
    QuantQwen3VLVisionMLP,
    QuantQwen3VLVisionPatchEmbed,
    QuantQwen3VLVisionPatchMerger,
    QuantQwen3VLVisionRotaryEmbedding,
)
from pyquant.models.qwen3_vl.vision_static import VisionProfile

__all__ = [
    "FusionProfile",
    "HeadProfile",
    "Profile",
    "QuantQwen3VLForConditionalGeneration",
    "QuantQwen3VLModel",
    "QuantQwen3VLTextAttention",
    "QuantQwen3VLTextDecoderLayer",
    "QuantQwen3VLTextMLP",
    "QuantQwen3VLTextModel",
    "QuantQwen3VLTextRMSNorm",
    "QuantQwen3VLTextRotaryEmbedding",
    "QuantQwen3VLVisionAttention",
    "QuantQwen3VLVisionBlock",
    "QuantQwen3VLVisionMLP",
    "QuantQwen3VLVisionModel",
    "QuantQwen3VLVisionPatchEmbed",
    "QuantQwen3VLVisionPatchMerger",
    "QuantQwen3VLVisionRotaryEmbedding",
    "TextProfile",
    "VisionProfile",
    "WholeProfile",
    "patchify",
    "prompt_batch",
]
