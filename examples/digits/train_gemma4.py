# SPDX-License-Identifier: Apache-2.0
"""Owns the training of the digits Gemma4, from seeded noise to the checkpoint that the repository carries.
Leaves optimisation to `training.py`, configuration and inputs to `gemma4_vlm.py`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.digits import training, vlm_data
from examples.digits.gemma4_vlm import CHECKPOINT, gemma4_config, inputs, save
from examples.digits.training import Recipe, Trained

RECIPE = Recipe(steps=3600, easy=600, warmup=150, lr=3e-3, weight_decay=0.1)
"""What made the committed checkpoint."""

LAYER_SCALARS = (0.9, 1.1)
"""Factors of the decoder layers, in turn: buffers, which HF does not train. 1 would hide a reader that skips them."""


@torch.no_grad()
def initialize_(model: nn.Module, generator: torch.Generator) -> None:
    """Starting weights that train: HF's leave the position table constant and a model this narrow starving.

    Matrices are normal with variance 1 / fan_in. Embeddings are small noise: scaled by the square root of their width
    they are near 1, and the tied head starts with logits near 1. Gains of q and k norms start at head_dim ** -0.25,
    because Gemma4 has no 1 / sqrt(head_dim) in its attention; those of the norms that write to a residual stream at
    0.4; all others at 1.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("embed_tokens_per_layer.weight"):
            parameter.normal_(0.0, 0.25, generator=generator)
        elif name.endswith("position_embedding_table"):
            parameter.normal_(0.0, 0.5, generator=generator)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(len(parameter) ** -0.25)
        elif parameter.ndim == 1:
            parameter.fill_(0.4 if "post_" in name else 1.0)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)


@torch.no_grad()
def set_buffers_(model: Gemma4ForConditionalGeneration, questions: int = 64, floor: float = 1e-2) -> None:
    """Sets what HF does not train, before training: layer scalars, and the standardization of the soft tokens.

    `std_bias`, `std_scale` become the mean and 1 / standard deviation, per channel, of what the tower as it is now
    pools from the pictures of so many training questions.
    """
    for number, layer in enumerate(model.model.language_model.layers):
        layer.layer_scalar.fill_(LAYER_SCALARS[number % len(LAYER_SCALARS)])
    tower = model.model.vision_tower
    tower.std_bias.zero_()
    tower.std_scale.fill_(1.0)
    batch = inputs(vlm_data.questions("train", questions, seed=0))
    soft = tower(pixel_values=batch["pixel_values"], pixel_position_ids=batch["image_position_ids"]).last_hidden_state
    tower.std_bias.copy_(soft.mean(dim=0))
    tower.std_scale.copy_(1 / soft.std(dim=0).clamp(min=floor))


def new_model(config: Gemma4Config, seed: int) -> Gemma4ForConditionalGeneration:
    """HF's model of `config` with starting weights from `seed`."""
    with torch.random.fork_rng():
        model = Gemma4ForConditionalGeneration(copy.deepcopy(config))
    model.set_attn_implementation("sdpa")
    initialize_(model, torch.Generator().manual_seed(seed))
    set_buffers_(model)
    return model


def train(recipe: Recipe = RECIPE, config: Gemma4Config | None = None, **rest: Any) -> Trained:
    """`training.train` of a new Gemma4, by default the committed one; `rest` are its other arguments."""
    model = new_model(config or gemma4_config(), recipe.seed)
    return training.train(recipe, model, training.copy_of(model), inputs, **rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; see `training.main`."""
    describe = "Train the small Gemma4 that answers questions about digits."
    return training.main(describe, RECIPE, CHECKPOINT, train, arguments, save)


if __name__ == "__main__":
    raise SystemExit(main())
