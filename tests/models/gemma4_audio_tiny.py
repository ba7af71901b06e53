# SPDX-License-Identifier: Apache-2.0
"""Tiny Gemma4 audio towers with nothing left at ones, zeros or infinity, and clips for them.

It owns building; the tests are test_gemma4_audio_*.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4 as hf
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig

torch.set_num_threads(1)

MELS = 16
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "subsampling_conv_channels": (MELS, 8),  # HF takes the first for the number of mel bins too
    "output_proj_dims": 24,
    "use_clipped_linears": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"use_clipped_linears": True},
    "tight_clamps": {"gradient_clipping": 0.9, "use_clipped_linears": True},
    "other_chunks": {"attention_chunk_size": 4, "attention_context_left": 7, "attention_context_right": 2},
    "low_cap": {"attention_logit_cap": 3.0, "residual_weight": 0.7, "conv_kernel_size": 3, "hidden_act": "gelu"},
}


def config(**overrides: Any) -> Gemma4AudioConfig:
    return Gemma4AudioConfig(**{**BASE, **overrides})


@torch.no_grad()
def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and clip bound at random: transformers' ones, zeros and infinities hide omissions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, std: float) -> Tensor:
        return torch.randn(t.shape, generator=generator) * std

    for name, parameter in module.named_parameters():
        if name.endswith("per_dim_scale"):
            parameter.copy_(normal(parameter, 1.0))
        elif parameter.dim() == 1:
            parameter.copy_(normal(parameter, 0.2) + (0.0 if name.endswith("bias") else 1.0))
        else:
            parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
            if name.endswith(("q_proj.linear.weight", "k_proj.linear.weight")):
                parameter.mul_(3.0)  # logits that the soft-cap bends
    for name, buffer in module.named_buffers():
        if name.endswith("_min"):
            buffer.copy_(-1.6 - normal(buffer, 0.2).abs())
        elif name.endswith("_max"):
            buffer.copy_(1.2 + normal(buffer, 0.2).abs())
    return module.eval()


def audio(**overrides: Any) -> hf.Gemma4AudioModel:
    return randomized(hf.Gemma4AudioModel(config(**overrides)))  # type: ignore[return-value]


def features(batch: int, frames: int, seed: int = 1, mels: int = MELS) -> Tensor:
    """(batch, frames, mels), as log mel spectra are: around a negative mean."""
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.5


def mask(frames: int, *valid: int) -> Tensor:
    """(batch, frames) bool: the first `valid` frames of each clip."""
    return torch.arange(frames) < torch.tensor(valid)[:, None]


def states(batch: int, tokens: int, seed: int = 2, width: int = 32) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))
