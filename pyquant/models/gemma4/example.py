# SPDX-License-Identifier: Apache-2.0
"""Inputs for any model of Gemma4, and the tiny one of `tiny:gemma4`: the vision tower.

It owns choosing by the model. Sizes and prompts are those of each part: example.py in vision, audio and text, and
whole_example.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyquant.models.gemma4 import whole_example as whole
from pyquant.models.gemma4.audio import example as audio
from pyquant.models.gemma4.text import example as text
from pyquant.models.gemma4.vision import example as vision

tiny_model = vision.tiny_model


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """As the part of Gemma4 has them that `model` is. Raises InputError for what it does not take."""
    config: Any = model.config
    if hasattr(config, "text_config"):
        return whole.example_inputs(model, images, ids)
    if hasattr(config, "vocab_size"):
        return text.example_inputs(model, images, ids)
    if hasattr(config, "pooling_kernel_size"):
        return vision.example_inputs(model, images, ids)
    return audio.example_inputs(model, images, ids)
