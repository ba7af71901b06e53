# SPDX-License-Identifier: Apache-2.0
"""A tiny Gemma4 vision model with random weights, and inputs of images for any Gemma4 vision model.

It owns their sizes. Cutting an image into patches is batches.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import made_up_image, randomize_, resized
from pyquant.models.gemma4.vision.batches import image_batches

POOLS = 4  # soft tokens along each side of an image


def tiny_model() -> nn.Module:
    """Two layers, 32 wide, with a standardization that is not the identity."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

    config = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pooling_kernel_size=2,
        patch_size=4,
        position_embedding_size=16,
        use_clipped_linears=False,
        standardize=True,
    )
    config._attn_implementation = "eager"
    model: Any = randomize_(Gemma4VisionModel(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):  # there is no 1 / sqrt(head_dim): keep attention soft
                parameter.mul_(0.6)
        generator = torch.Generator().manual_seed(1)
        model.std_bias.copy_(torch.randn(model.std_bias.shape, generator=generator, dtype=torch.float32, device="cpu"))
        model.std_scale.copy_(
            0.5 + torch.rand(model.std_scale.shape, generator=generator, dtype=torch.float32, device="cpu")
        )
    return cast(nn.Module, model.eval())


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Each image as POOLS x POOLS pools (fewer where the model's position table is smaller). Raises InputError."""
    if ids is not None:
        raise InputError(f"a {type(model).__name__} takes images alone; leave the prompt and ids out")
    config: Any = model.config
    kernel, patch = int(config.pooling_kernel_size), int(config.patch_size)
    side = min(POOLS, int(config.position_embedding_size) // kernel) * kernel * patch
    given = [resized(image, side, side) for image in (images or [made_up_image()])]
    return next(image_batches(given, patch_size=patch, pooling_kernel_size=kernel, batch_size=len(given)))
