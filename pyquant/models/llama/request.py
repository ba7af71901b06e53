# SPDX-License-Identifier: Apache-2.0
"""What a bundle of a Llama is made of: a Profile from what a user asked for and what calibration data shows.

It owns no guess of its own: they are those of every text model (models/request.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyquant.errors import ProfileError
from pyquant.models.request import BundleChoice, Request, Sizes, as_settings, text_options, text_sizes


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's names are the model's."""
    return batch


def sizes(batch: Mapping[str, Tensor]) -> Sizes:
    """Tokens of a row, and how many rows."""
    return text_sizes(batch)


def choose(config: Any, request: Request, seen: Sequence[Sizes]) -> BundleChoice:
    """The Profile of a LlamaForCausalLM or a LlamaModel. Raises ProfileError for a request that it cannot serve."""
    from pyquant.models.llama.profiles import Profile

    request.refuse(("image_grids", "audio_lengths", "video_frames", "per_layer_table"), "a text model")
    if request.layers == "whole":
        raise ProfileError("layers='whole' is for models with images; a text model has 'stack' and 'per_layer'")
    options, guesses = text_options(int(config.max_position_embeddings), request, seen)
    return BundleChoice(Profile(**options), as_settings(options), tuple(guesses))
