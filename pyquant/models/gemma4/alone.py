# SPDX-License-Identifier: Apache-2.0
"""How a part of Gemma4 is exported alone, from what it was called with in a run of the whole.

It owns naming the profile and the graph's inputs of the vision tower's parts, the experts, the join, and what per-layer
inputs add to layers; the audio tower's parts are audio/alone.py, all others pyquant.decoder.alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.alone import alone as decoder_alone
from pyquant.exporter.profile import Alone
from pyquant.models.gemma4 import (
    ExpertsProfile,
    FusionProfile,
    QuantGemma4Model,
    QuantGemma4TextDecoderLayer,
    QuantGemma4TextExperts,
    QuantGemma4TextModel,
    QuantGemma4VisionAttention,
    QuantGemma4VisionEncoder,
    QuantGemma4VisionEncoderLayer,
    QuantGemma4VisionModel,
    QuantGemma4VisionPatchEmbedder,
    QuantGemma4VisionPooler,
)
from pyquant.models.gemma4.audio.alone import alone as audio_alone
from pyquant.models.gemma4.places import TEXT, Counts, place_index
from pyquant.models.gemma4.text.per_layer import combine, tokens_of_layers
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
    """The profile and inputs of the graph of `q`, called with `arguments` while the model ran on `batch`.

    None where nothing depends on positions: such a part is exported by the shapes of its arguments.
    """
    if isinstance(q, QuantGemma4TextExperts):
        return Alone(ExpertsProfile(arguments["hidden_states"].shape[0]), arguments)
    if isinstance(q, QuantGemma4Model):
        return _joined(q, arguments)
    if isinstance(q, QuantGemma4TextModel | QuantGemma4TextDecoderLayer):
        return _with_per_layer_inputs(q, arguments, batch)
    first = _FIRST.get(type(q))
    if first is None:
        return audio_alone(q, arguments) or decoder_alone(q, arguments, batch)
    kernel = None
    if isinstance(q, QuantGemma4VisionPooler):
        kernel = math.isqrt(arguments["hidden_states"].shape[1] // int(arguments["output_length"]))
    positions = batch.get("pixel_position_ids", batch.get("image_position_ids"))
    profile = VisionProfile(pixel_position_ids=positions, pooling_kernel_size=kernel)
    return Alone(profile, {first: arguments[first]})


def _joined(q: QuantGemma4Model, arguments: Mapping[str, Any]) -> Alone | None:
    """The join of text and rows of images; the other graphs of the model belong to its parts."""
    ids = arguments["input_ids"]
    rows = q.get_image_features(arguments["pixel_values"], arguments["image_position_ids"]).pooler_output
    images = rows if isinstance(rows, Tensor) else torch.cat(list(rows))
    types = q.places(ids)
    inputs = {
        "text_embeds": q.language_model.embed_tokens(ids.masked_fill(types != TEXT, q.pad)),
        "image_embeds": images,
        "place_index": place_index(types, Counts(images=len(images))).to(torch.int32),
    }
    return Alone(FusionProfile(ids.shape[0], ids.shape[1], visual_tokens=len(images)), inputs)


def _with_per_layer_inputs(
    q: QuantGemma4TextModel | QuantGemma4TextDecoderLayer, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]
) -> Alone | None:
    """As any decoder, and what its layers get for each token."""
    made = decoder_alone(q, arguments, batch)
    if isinstance(q, QuantGemma4TextDecoderLayer):
        given = arguments.get("per_layer_input")
        return made if made is None or given is None else Alone(made.profile, {**made.inputs, "per_layer_input": given})
    if made is None or not q.per_layer_width:
        return made
    rows = arguments.get("per_layer_inputs")
    if rows is None:
        rows = tokens_of_layers(q, arguments["input_ids"])
    inputs = combine(q, q.q("inputs_embeds", made.inputs["inputs_embeds"]), rows)
    return Alone(made.profile, {**made.inputs, "per_layer_inputs": inputs})
