# SPDX-License-Identifier: Apache-2.0
"""Owns the training of the digits Qwen3-VL, from seeded noise to the checkpoint that the repository carries.
Leaves optimisation to `training.py`, questions to `vlm_data.py`, configuration and evaluation to `vlm.py`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen3VLConfig, Qwen3VLForConditionalGeneration

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.digits import training, vlm_data
from examples.digits.training import Recipe, Trained
from examples.digits.vlm import CHECKPOINT, vlm_config

# HF hands the whole sequence with its segment bounds to implementations with "flash" in their name; for all others it
# calls once per image, which takes most of a step when images are as small as these.
SEGMENTS = "digits_flash_segments"


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, cu_seq_lens_q: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attention within each segment of (1, heads, S, head_dim) -> (1, S, heads, head_dim); one call per segment length.

    `cu_seq_lens_q` (segments + 1,) are the bounds. Registered as SEGMENTS, for training only: the weights know nothing
    of it, and the checkpoint's own attention is whatever it is loaded with.
    """
    bounds = cu_seq_lens_q.long()
    lengths, starts = bounds.diff(), bounds[:-1]
    out = torch.empty_like(query)
    for length in lengths.unique().tolist():
        rows = starts[lengths == length, None] + torch.arange(length)
        q, k, v = (x[0][:, rows].transpose(0, 1) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=rest["scaling"])
        out = out.index_copy(2, rows.flatten(), mixed.transpose(0, 1).flatten(1, 2)[None])
    return out.transpose(1, 2), None


AttentionInterface.register(SEGMENTS, segment_attention)


@torch.no_grad()
def initialize_(model: nn.Module, generator: torch.Generator) -> None:
    """Starting weights that train: HF's deviation of 0.02 starves a model this narrow.

    Matrices are normal with variance 1 / fan_in, those that write to a residual stream scaled by (2 * layers) ** -0.5;
    embeddings and position rows are small noise, so that the tied head starts with logits near 1.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("pos_embed.weight"):
            parameter.normal_(0.0, 0.2, generator=generator)
        elif parameter.ndim > 1:
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight"))
            deviation = parameter[0].numel() ** -0.5 * (8**-0.5 if writes else 1.0)
            parameter.normal_(0.0, deviation, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def new_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """HF's model of `config`, starting weights from `seed`, attention as training wants it."""
    with torch.random.fork_rng():
        model = Qwen3VLForConditionalGeneration(copy.deepcopy(config))
    model.set_attn_implementation("sdpa")
    model.model.visual.config._attn_implementation = SEGMENTS
    initialize_(model, torch.Generator().manual_seed(seed))
    return model


def train(recipe: Recipe, config: Qwen3VLConfig | None = None, **rest: Any) -> Trained:
    """`training.train` of a new Qwen3-VL, by default the committed one; `rest` are its other arguments."""
    model = new_model(config or vlm_config(), recipe.seed)
    return training.train(recipe, model, training.copy_of(model), vlm_data.inputs, **rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; see `training.main`."""
    describe = "Train the small Qwen3-VL that answers questions about digits."
    return training.main(describe, Recipe(), CHECKPOINT, train, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
