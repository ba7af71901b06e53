# SPDX-License-Identifier: Apache-2.0
"""How a part of Qwen3-VL is exported alone, from what it was called with in a run of the whole.

It owns what is not a decoder's: the vision tower, deepstack, the whole model in one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.alone import alone as decoder_alone
from pyquant.decoder.alone import graph_tables, model_tokens
from pyquant.exporter.profile import Alone
from pyquant.models.qwen3_vl.deepstack import dense_addends
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.graphs import WholeProfile
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.models.qwen3_vl.positions import rope_index, token_types
from pyquant.models.qwen3_vl.text import QuantQwen3VLTextModel, Qwen3VLTextProfile, named_addends
from pyquant.models.qwen3_vl.tower import QuantQwen3VLVisionModel
from pyquant.models.qwen3_vl.vision import (
    QuantQwen3VLVisionAttention,
    QuantQwen3VLVisionBlock,
    QuantQwen3VLVisionRotaryEmbedding,
)
from pyquant.models.qwen3_vl.vision_static import VisionProfile
from pyquant.wrap.base import QModule


def alone(q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Alone | None:
    """The profile and inputs of the graph of `q`, called with `arguments` while the model ran on `batch`.

    None for a part that its arguments' shapes describe. Raises ProfileError for the rotary modules: their tables are
    constants or inputs of other graphs.
    """
    if isinstance(q, QuantQwen3VLVisionRotaryEmbedding):
        q.as_export_module(None)
    if isinstance(q, QuantQwen3VLVisionAttention | QuantQwen3VLVisionBlock | QuantQwen3VLVisionModel):
        name = "pixel_values" if isinstance(q, QuantQwen3VLVisionModel) else "hidden_states"
        return Alone(VisionProfile(batch["image_grid_thw"]), {name: arguments["hidden_states"]})
    if isinstance(q, QuantQwen3VLTextModel):
        return _text(q, arguments)
    if isinstance(q, QuantQwen3VLModel):
        return _whole(q, arguments)
    return decoder_alone(q, arguments, batch)


def _text(q: QuantQwen3VLTextModel, arguments: Mapping[str, Any]) -> Alone:
    tokens, positions, text_positions = model_tokens(q, arguments)
    features = arguments.get("deepstack_visual_embeds")
    where = arguments.get("visual_pos_masks")
    size = (tokens.shape[0], tokens.shape[1], tokens.shape[2])
    addends = dense_addends(where, features, size, tokens.dtype, q.taps)
    masks = q.masks(arguments.get("attention_mask"), tokens, None, text_positions)
    made = graph_tables(tokens, q, masks, q.tables(tokens, positions))
    profile = Qwen3VLTextProfile(tokens.shape[0], tokens.shape[1], deepstack=len(addends))
    return Alone(profile, {"inputs_embeds": tokens, **named_addends(addends), **made})


def _whole(q: QuantQwen3VLModel, arguments: Mapping[str, Any]) -> Alone:
    ids, given = arguments["input_ids"], arguments.get("image_grid_thw")
    grids: tuple[Grid, ...] = () if given is None else grids_of(given, q.merge)
    types = token_types(ids, q.config.image_token_id, q.config.video_token_id)
    positions, _ = rope_index(types, grids, (), arguments.get("attention_mask"), merge=q.merge)
    text = q.language_model
    embeds = text.embed_tokens(ids)
    masks = text.masks(arguments.get("attention_mask"), embeds, None)
    inputs = {"input_ids": ids.to(torch.int32)}
    if grids:
        rows = int((types != 0).sum())
        inputs["pixel_values"] = arguments["pixel_values"]
        inputs["visual_index"] = visual_index(types, rows, 0).to(torch.int32)
    inputs |= graph_tables(embeds, text, masks, text.tables(embeds, positions))
    return Alone(WholeProfile(ids.shape[0], ids.shape[1], image_grids=grids), inputs)
