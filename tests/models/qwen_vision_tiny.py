# SPDX-License-Identifier: Apache-2.0
"""Tiny Qwen3-VL vision towers with nothing left at ones or zeros, and one table of every wrapper with its inputs.

It owns building; what holds for every case is test_qwen_vision_wrappers.py, what is particular is in the other files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl as hf
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from pyquant.models import qwen3_vl

torch.set_num_threads(1)

Grid = tuple[int, int, int]
MERGE, PIXELS, WIDTH = 2, 3 * 2 * 4 * 4, 32

# Three taps with the last block among them, out of order; a position table of 3 x 3, smaller than every grid.
BASE: dict[str, Any] = {
    "depth": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": MERGE,
    "out_hidden_size": 24,
    "num_position_embeddings": 9,
    "deepstack_visual_indexes": [1, 2, 0],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "taps": {},
    "large_table": {"num_position_embeddings": 49, "deepstack_visual_indexes": [1], "depth": 2},
    "merge_1": {"spatial_merge_size": 1, "depth": 1, "deepstack_visual_indexes": [0]},
    "no_taps_silu": {"deepstack_visual_indexes": [], "depth": 1, "hidden_act": "silu", "num_heads": 2},
}


def config(**overrides: Any) -> Qwen3VLVisionConfig:
    result = Qwen3VLVisionConfig(**{**BASE, **overrides})
    result._attn_implementation = "eager"
    return result


@torch.no_grad()
def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, norms and biases too: transformers' ones and zeros hide omissions."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.3 * noise)
        elif "pos_embed" in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()


def vision(seed: int = 0, **overrides: Any) -> hf.Qwen3VLVisionModel:
    return randomized(hf.Qwen3VLVisionModel(config(**overrides)), seed)  # type: ignore[return-value]


def patches(grids: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids)


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def pixels(grids: Sequence[Grid], seed: int = 1) -> Tensor:
    return normal(patches(grids), PIXELS, seed)


def cu_seqlens(grids: Sequence[Grid]) -> Tensor:
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def places(grids: Sequence[Grid], merge: int = MERGE) -> Tensor:
    """(row, column) of each patch, written as four loops."""
    return torch.tensor(
        [
            (row * merge + y, column * merge + x)
            for t, h, w in grids
            for _ in range(t)
            for row in range(h // merge)
            for column in range(w // merge)
            for y in range(merge)
            for x in range(merge)
        ]
    )


def rotary(head_dim: int, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
    """cos and sin (N, head_dim), from the formula: a quarter of the dimensions each for row, column, row, column."""
    frequencies = 10000.0 ** -(torch.arange(0, head_dim // 2, 2).double() / (head_dim // 2))
    angles = (places(grids).double()[:, :, None] * frequencies).flatten(1).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One wrapper: its float module, keyword inputs per grids, and what of the output counts (in the graph's order)."""

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, Sequence[Grid]], Inputs]
    first: str  # the input that a static graph keeps
    pick: Callable[[Any], list[Tensor]] = lambda out: [out]


def _embed_inputs(fp: nn.Module, grids: Sequence[Grid]) -> Inputs:
    return {"hidden_states": pixels(grids)}


def _hidden(name: str) -> Callable[[nn.Module, Sequence[Grid]], Inputs]:
    return lambda fp, grids: {name: normal(patches(grids), WIDTH, 2)}


def _block_inputs(fp: Any, grids: Sequence[Grid]) -> Inputs:
    return {
        "hidden_states": normal(patches(grids), WIDTH, 2),
        "cu_seqlens": cu_seqlens(grids),
        "position_embeddings": rotary(8, grids),
    }


def _model_inputs(fp: nn.Module, grids: Sequence[Grid]) -> Inputs:
    return {"hidden_states": pixels(grids), "grid_thw": torch.tensor(grids)}


def _tokens(out: Any) -> list[Tensor]:
    return [out.pooler_output, *out.deepstack_features]


def _part(path: str, **overrides: Any) -> Callable[[], nn.Module]:
    return lambda: vision(**overrides).get_submodule(path)


# Wrappers that a VisionProfile exports.
STATIC: dict[str, Case] = {
    "attention": Case(_part("blocks.1.attn"), _block_inputs, "hidden_states"),
    "block": Case(_part("blocks.1"), _block_inputs, "hidden_states"),
    **{
        f"model_{name}": Case(lambda o=o: vision(**o), _model_inputs, "hidden_states", _tokens)
        for name, o in CONFIGS.items()
    },
}
# Wrappers without anything that depends on grids: an ExportProfile.
PLAIN: dict[str, Case] = {
    "patch_embed": Case(_part("patch_embed"), _embed_inputs, "hidden_states"),
    "mlp": Case(_part("blocks.1.mlp"), _hidden("hidden_state"), "hidden_state"),
    "merger": Case(_part("merger"), _hidden("x"), "x"),
    "deepstack_merger": Case(_part("deepstack_merger_list.1"), _hidden("x"), "x"),
}
CASES = {**STATIC, **PLAIN}

BATCHES: dict[str, tuple[Grid, ...]] = {
    "image": ((1, 4, 6),),
    "equal_images": ((1, 4, 4), (1, 4, 4)),
    "images": ((1, 4, 4), (1, 2, 6), (1, 6, 2)),
    "video": ((3, 4, 4),),
    "mixed": ((1, 4, 4), (2, 2, 4), (1, 2, 6)),
}


def runs(grids: Sequence[Grid]) -> int:
    """How often attention runs: once for neighbours of one length."""
    lengths = [h * w for t, h, w in grids for _ in range(t)]
    return 1 + sum(a != b for a, b in pairwise(lengths))


def profile_of(grids: Sequence[Grid]) -> qwen3_vl.VisionProfile:
    return qwen3_vl.VisionProfile(tuple(grids))
