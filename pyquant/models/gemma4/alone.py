# SPDX-License-Identifier: Apache-2.0
"""How a part of Gemma4 is exported alone, from what it was called with in a run of the whole.

It owns naming the profile and the graph's inputs of the vision tower's parts; those of the audio tower are
audio/alone.py. What a profile means is profiles.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyquant.decoder.alone import alone as decoder_alone
from pyquant.exporter.profile import Alone
from pyquant.models.gemma4 import (
    ExpertsProfile,
    QuantGemma4TextExperts,
    QuantGemma4VisionAttention,
    QuantGemma4VisionEncoder,
    QuantGemma4VisionEncoderLayer,
    QuantGemma4VisionModel,
    QuantGemma4VisionPatchEmbedder,
    QuantGemma4VisionPooler,
)
from pyquant.models.gemma4.audio.alone import alone as audio_alone
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.wrap.base import QModule

_FIRST: dict[type[QModule], str] = {
    QuantGemma4VisionModel: "pixel_values",
    QuantGemma4VisionPatchEmbedder: "pixel_values",
    QuantGemma4VisionEncoder: "inputs_embeds",
    QuantGemma4VisionEncoderLayer: "hidden_states",
    QuantGemma4VisionAttention: "hidden_states",
    QuantGemma4VisionPooler: "hidden_states",
}


def alone(q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Alone | None:
    """The profile and inputs of the graph of `q`, called with `arguments` while the tower ran on `batch`.

    None where nothing depends on positions: such a part is exported by the shapes of its arguments.
    """
    if isinstance(q, QuantGemma4TextExperts):
        return Alone(ExpertsProfile(arguments["hidden_states"].shape[0]), arguments)
    first = _FIRST.get(type(q))
    if first is None:
        return audio_alone(q, arguments) or decoder_alone(q, arguments, batch)
    kernel = None
    if isinstance(q, QuantGemma4VisionPooler):
        kernel = math.isqrt(arguments["hidden_states"].shape[1] // int(arguments["output_length"]))
    profile = VisionProfile(pixel_position_ids=batch["pixel_position_ids"], pooling_kernel_size=kernel)
    return Alone(profile, {first: arguments[first]})
