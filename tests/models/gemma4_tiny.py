# SPDX-License-Identifier: Apache-2.0
"""Tiny Gemma4 vision models with nothing left at ones or zeros, and one table of every wrapper with its inputs.

It owns building; what holds for every case is test_gemma4_wrappers.py, what is particular is in the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4 as hf
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from pyquant.models import gemma4

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pooling_kernel_size": 2,
    "patch_size": 2,
    "position_embedding_size": 12,
    "use_clipped_linears": False,
    "standardize": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "standardized": {"standardize": True},
    "clipped": {"use_clipped_linears": True},
    "clipped_standardized": {"use_clipped_linears": True, "standardize": True},
    "no_groups": {"num_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1},
    "kernel_3": {"pooling_kernel_size": 3, "standardize": True},
    "wide_heads": {"head_dim": 16},
    "silu": {"hidden_activation": "silu"},
}


def config(**overrides: Any) -> Gemma4VisionConfig:
    result = Gemma4VisionConfig(**{**BASE, **overrides})
    result._attn_implementation = "eager"
    return result


@torch.no_grad()
def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter, gain, clip bound and std buffer at random: transformers' ones, zeros and inf hide omissions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, std: float) -> Tensor:
        return torch.randn(t.shape, generator=generator) * std

    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.copy_(1 + normal(parameter, 0.3))
        elif name.endswith("position_embedding_table"):
            parameter.copy_(normal(parameter, 0.4))
        else:
            parameter.copy_(normal(parameter, parameter.shape[-1] ** -0.5))
    for name, parameter in module.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):  # there is no 1 / sqrt(head_dim): keep attention soft
            parameter.mul_(0.6)
    for name, buffer in module.named_buffers():
        if name.endswith("_min"):
            buffer.copy_(-1.6 - normal(buffer, 0.2).abs())
        elif name.endswith("_max"):
            buffer.copy_(1.2 + normal(buffer, 0.2).abs())
        elif name.endswith("std_bias"):
            buffer.copy_(normal(buffer, 1.0))
        elif name.endswith("std_scale"):
            buffer.copy_(0.5 + normal(buffer, 0.3).abs())
    return module.eval()


def vision(**overrides: Any) -> hf.Gemma4VisionModel:
    return randomized(hf.Gemma4VisionModel(config(**overrides)))  # type: ignore[return-value]


def positions(*grids: tuple[int, int], patches: int | None = None) -> Tensor:
    """(batch, patches, 2) of (x, y), row by row; (height, width) per image; padding -1 at the end."""
    patches = patches or max(h * w for h, w in grids)
    ids = torch.full((len(grids), patches, 2), -1)
    for row, (height, width) in enumerate(grids):
        for patch in range(height * width):
            ids[row, patch] = torch.tensor([patch % width, patch // width])
    return ids


def pixels(ids: Tensor, size: int = 12, seed: int = 1) -> Tensor:
    """(batch, patches, size) in [0, 1]; zero at padding, as the image processor makes them."""
    values = torch.rand(*ids.shape[:2], size, generator=torch.Generator().manual_seed(seed))
    return values.masked_fill((ids == -1).all(-1, keepdim=True), 0.0)


def states(ids: Tensor, size: int = 32, seed: int = 2) -> Tensor:
    return torch.randn(*ids.shape[:2], size, generator=torch.Generator().manual_seed(seed))


def rotary(fp_config: Gemma4VisionConfig, ids: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return hf.Gemma4VisionRotaryEmbedding(fp_config)(torch.empty(0, dtype=dtype), ids)


Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One wrapper: its float module, keyword inputs per position ids, and what of the output counts."""

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, Tensor], Inputs]
    first: str = ""  # the input that a static graph keeps
    pick: Callable[[Any], Tensor] = lambda out: out if isinstance(out, Tensor) else out[0]
    profile: dict[str, Any] = field(default_factory=dict)
    unused_sites: tuple[str, ...] = ()  # in the tree, but not in any graph of this wrapper alone


def _padding(ids: Tensor) -> Tensor:
    return (ids == -1).all(-1)


def _layer_inputs(fp: Any, ids: Tensor) -> Inputs:
    padding = _padding(ids)
    return {
        "hidden_states": states(ids),
        "position_embeddings": rotary(fp.config, ids),
        "attention_mask": None
        if not padding.any()
        else torch.zeros(ids.shape[0], 1, ids.shape[1], ids.shape[1]).masked_fill(
            padding[:, None, None, :], torch.finfo(torch.float32).min
        ),
        "position_ids": ids,
    }


def _embedder_inputs(fp: nn.Module, ids: Tensor) -> Inputs:
    return {"pixel_values": pixels(ids), "pixel_position_ids": ids, "padding_positions": _padding(ids)}


def _pooler_inputs(kernel: int) -> Callable[[nn.Module, Tensor], Inputs]:
    def inputs(fp: nn.Module, ids: Tensor) -> Inputs:
        return {
            "hidden_states": states(ids),
            "pixel_position_ids": ids,
            "padding_positions": _padding(ids),
            "output_length": ids.shape[1] // kernel**2,
        }

    return inputs


def _encoder_inputs(fp: nn.Module, ids: Tensor) -> Inputs:
    return {"inputs_embeds": states(ids), "attention_mask": ~_padding(ids), "pixel_position_ids": ids}


def _model_inputs(fp: nn.Module, ids: Tensor) -> Inputs:
    return {"pixel_values": pixels(ids), "pixel_position_ids": ids}


def _hidden(fp: nn.Module, ids: Tensor) -> Inputs:
    return {"hidden_states": states(ids)}


def _part(path: str, **overrides: Any) -> Callable[[], nn.Module]:
    return lambda: vision(**overrides).get_submodule(path)


LAYER = "encoder.layers.1"
# Wrappers that a VisionProfile exports, alone.
STATIC: dict[str, Case] = {
    "patch_embedder": Case(_part("patch_embedder"), _embedder_inputs, "pixel_values"),
    "attention": Case(_part(f"{LAYER}.self_attn"), _layer_inputs, "hidden_states"),
    "attention_clipped": Case(_part(f"{LAYER}.self_attn", use_clipped_linears=True), _layer_inputs, "hidden_states"),
    "encoder_layer": Case(_part(LAYER), _layer_inputs, "hidden_states"),
    "encoder_layer_clipped": Case(_part(LAYER, use_clipped_linears=True), _layer_inputs, "hidden_states"),
    "encoder": Case(_part("encoder"), _encoder_inputs, "inputs_embeds"),
    "pooler": Case(_part("pooler"), _pooler_inputs(2), "hidden_states", profile={"pooling_kernel_size": 2}),
    **{f"model_{name}": Case(lambda o=o: vision(**o), _model_inputs, "pixel_values") for name, o in CONFIGS.items()},
}
# Wrappers without anything that depends on positions: any shape, an ExportProfile.
PLAIN: dict[str, Case] = {
    "rms_norm": Case(_part(f"{LAYER}.input_layernorm"), _hidden, "hidden_states"),
    "rms_norm_without_scale": Case(_part(f"{LAYER}.self_attn.v_norm"), _hidden, "hidden_states"),
    "linear_without_bounds": Case(_part(f"{LAYER}.self_attn.q_proj"), _hidden, "hidden_states"),
    "linear_clipped": Case(_part(f"{LAYER}.mlp.up_proj", use_clipped_linears=True), _hidden, "hidden_states"),
    "mlp": Case(_part(f"{LAYER}.mlp"), lambda fp, ids: {"x": states(ids)}, "x"),
    "mlp_clipped": Case(_part(f"{LAYER}.mlp", use_clipped_linears=True), lambda fp, ids: {"x": states(ids)}, "x"),
}
CASES = {**STATIC, **PLAIN}


def grids_for(case_name: str) -> dict[str, tuple[tuple[tuple[int, int], ...], int]]:
    """Batches of (height, width) that the case's pooling takes: name -> grids, patches."""
    if "kernel_3" in case_name:
        return {"one": (((3, 6),), 18), "two": (((6, 3), (3, 6)), 18), "padded": (((3, 3), (6, 3)), 27)}
    return {
        "one": (((4, 4),), 16),
        "two": (((4, 4), (2, 8)), 16),
        "padded": (((2, 4), (4, 4)), 16),
        "padded_one": (((4, 2),), 12),
    }


BATCHES = [(name, batch) for name in CASES for batch in grids_for(name)]
# Exporting takes a second or so: every batch for a few, a plain and a padded one for what depends on positions.
EXPORTS = [
    (name, batch)
    for name, batch in BATCHES
    if batch == "padded"
    or (batch == "two" and name in STATIC)
    or name in ("patch_embedder", "pooler", "encoder_layer", "model_clipped_standardized")
]


def profile_of(case: Case, grids: tuple[tuple[int, int], ...], patches: int) -> gemma4.VisionProfile:
    return gemma4.VisionProfile(grid=grids, num_patches=patches, **case.profile)
