# SPDX-License-Identifier: Apache-2.0
"""A tiny Gemma4 audio tower with random weights, and clips for any Gemma4 audio tower.

It owns their sizes; see pyquant.models.family.Example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import randomize_

MEL_BINS = 16
FRAMES = 100  # 25 tokens: two whole blocks of twelve, and one token of a third


def tiny_model() -> nn.Module:
    """Two layers, 32 wide, with clip bounds that values reach."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel

    config = Gemma4AudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        subsampling_conv_channels=(MEL_BINS, 8),
        output_proj_dims=24,
        use_clipped_linears=True,
    )
    model: Any = randomize_(Gemma4AudioModel(config))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("_min", "_max")):
                buffer.fill_(2.2 if name.endswith("_max") else -2.2)
    return cast(nn.Module, model.eval())


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """One clip of FRAMES frames, and its mask. Raises InputError for images and ids."""
    if ids is not None or len(images):
        raise InputError(f"a {type(model).__name__} takes sound alone; leave images, the prompt and ids out")
    config: Any = model.config
    generator = torch.Generator().manual_seed(1)
    shape = (1, FRAMES, int(config.subsampling_conv_channels[0]))  # HF takes it for the number of mel bins too
    features = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return {"input_features": features, "attention_mask": torch.ones(shape[:2], dtype=torch.bool, device="cpu")}
