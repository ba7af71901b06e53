# SPDX-License-Identifier: Apache-2.0
"""How a part of Gemma4's audio tower is exported alone, from what it was called with in a run of the whole.

It owns naming the profile and the graph's inputs: masks are floats in graphs. What a profile means is profiles.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyquant.exporter.profile import Alone, ExportProfile, TensorSpec
from pyquant.models.gemma4.audio.attention import QuantGemma4AudioAttention, QuantGemma4AudioRelPositionalEncoding
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.models.gemma4.audio.layers import QuantGemma4AudioLayer
from pyquant.models.gemma4.audio.mask import blocked
from pyquant.models.gemma4.audio.model import QuantGemma4AudioModel
from pyquant.models.gemma4.audio.profiles import FRAMES_PER_TOKEN, AudioProfile
from pyquant.models.gemma4.audio.subsample import (
    QuantGemma4AudioSubSampleConvProjection,
    QuantGemma4AudioSubSampleConvProjectionLayer,
)
from pyquant.wrap.base import QModule


def alone(q: QModule, arguments: Mapping[str, Any]) -> Alone | None:
    """The profile and inputs of the graph of `q`, called with `arguments`; None where shapes alone make the graph.

    Raises ProfileError for the relative positions, which are constants of other graphs.
    """
    if isinstance(q, QuantGemma4AudioRelPositionalEncoding):
        q.as_export_module(None)
    if isinstance(q, QuantGemma4AudioModel):
        batch, frames, _ = (features := arguments["input_features"]).shape
        given = arguments.get("attention_mask")
        mask = (
            torch.ones(batch, frames, dtype=torch.float32, device=features.device)
            if given is None
            else (given != 0).float()
        )
        return Alone(AudioProfile(frames, batch), {"input_features": features, "attention_mask": mask})
    if isinstance(q, QuantGemma4AudioLayer | QuantGemma4AudioAttention):
        return _layer(q, arguments)
    if isinstance(q, QuantGemma4AudioSubSampleConvProjection | QuantGemma4AudioSubSampleConvProjectionLayer):
        inputs = {name: value.float() for name, value in arguments.items()}
        specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in inputs.items()}
        return Alone(ExportProfile(specs, ("hidden_states_out", "mask_out")[: len(inputs)]), inputs)
    return None


def _layer(q: QModule, arguments: Mapping[str, Any]) -> Alone:
    hidden = arguments["hidden_states"]
    batch, tokens, _ = hidden.shape
    mask = blocked(arguments.get("attention_mask"), float(q.config.attention_logit_cap))
    if mask is None:
        chunks = Chunks.of(q.config)
        values = torch.zeros(
            1, batch * chunks.count(tokens), chunks.size, chunks.context, dtype=torch.float32, device=hidden.device
        )
    else:
        values = mask.values
    profile = AudioProfile(FRAMES_PER_TOKEN * tokens, batch)
    return Alone(profile, {"hidden_states": hidden, "attention_mask": values})
