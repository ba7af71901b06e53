# SPDX-License-Identifier: Apache-2.0
"""Owns the small Gemma4 that answers questions about digits: its configuration, its checkpoint, its inputs.
Leaves questions to `vlm_data.py`, their evaluation to `vlm.py` and optimisation to `train_gemma4.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, PreTrainedModel

from examples.digits import vlm_data
from examples.digits.data import distorted
from examples.digits.vlm import EOS, require
from examples.digits.vlm_data import DIGIT, MERGE, PATCH, TOKEN, WORDS, Padding, Question

CHECKPOINT = Path(__file__).parent / "gemma4_vlm"

TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "vocab_size_per_layer_input": len(WORDS),
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 16,
    "final_logit_softcapping": 15.0,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "pad_token_id": TOKEN["<pad>"],
    "bos_token_id": None,
    "eos_token_id": EOS,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    },
}

VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "pooling_kernel_size": MERGE,
    "patch_size": PATCH,
    "position_embedding_size": 12,
    "use_clipped_linears": False,
    "standardize": True,
}


def gemma4_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Gemma4Config:
    """The HF configuration, with entries of `text` and `vision` in the place of the defaults; there is no audio."""
    return Gemma4Config(
        text_config=TEXT | (text or {}),
        vision_config=VISION | (vision or {}),
        audio_config=None,
        boi_token_id=TOKEN["<vision_start>"],
        eoi_token_id=TOKEN["<vision_end>"],
        image_token_id=TOKEN["<image>"],
        video_token_id=TOKEN["<video>"],
        audio_token_id=len(WORDS),  # HF compares ids with it whether or not there is audio: an id that no word has
        tie_word_embeddings=True,
    )


def load_model(folder: str | Path = CHECKPOINT) -> Gemma4ForConditionalGeneration:
    """HF's model with the weights in `folder` (by default the trained ones), float32, eager attention, in eval mode."""
    require(folder, "train_gemma4.py")
    model = Gemma4ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes `folder` as `from_pretrained` reads it, of any transformers that pyquant supports.

    Since 5.24 transformers writes what earlier ones cannot read: the head size of full layers as overrides per layer,
    where others have `global_head_dim`, and the kind of the vision tower's rotary embedding, which is the default of
    all. Every release reads the first in the old form, and needs no second.
    """
    model.save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    overrides = {layer["head_dim"] for layer in config["text_config"].pop("per_layer_config", {}).values()}
    if overrides:
        (config["text_config"]["global_head_dim"],) = overrides
    config["vision_config"].pop("rope_parameters", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def inputs(
    asked: Sequence[Question],
    *,
    answers: bool = False,
    padding: Padding = "left",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """A batch of questions as the keyword arguments of `Gemma4ForConditionalGeneration.forward`.

    `input_ids`, `attention_mask`, `mm_token_type_ids` (B, S) as in `vlm_data.inputs`, with the same `padding`.
    `pixel_values` (pictures, P, 3 * 4 * 4), float32 in [0, 1]: patches in row-major order, each flattened as
    (y, x, channel) as HF's image processor does; P is the most patches that a picture here has, and the others are
    filled up with zeros. `image_position_ids` (pictures, P, 2), int64: (x, y) of each patch, (-1, -1) of the fill.
    With a `generator` every digit is `distorted` (for training).
    """
    text = vlm_data.tokens(asked, answers=answers, padding=padding)
    draw = None if generator is None else functools.partial(distorted, size=DIGIT, generator=generator)
    pages = vlm_data.pages(asked, draw)
    grids = [picture.grid for q in asked for picture in q.pictures]
    most = max(h * w for _, h, w in grids)
    pixels = torch.zeros(len(grids), most, 3 * PATCH**2)
    places = torch.full((len(grids), most, 2), -1)
    for row, ((_, h, w), page) in enumerate(zip(grids, pages, strict=True)):
        patches = page.view(h, PATCH, w, PATCH).transpose(1, 2).reshape(h * w, PATCH**2, 1)
        pixels[row, : h * w] = patches.expand(-1, -1, 3).flatten(1)
        places[row, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(-1)
    return {**text, "pixel_values": pixels, "image_position_ids": places}
