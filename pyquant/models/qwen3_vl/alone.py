# SPDX-License-Identifier: Apache-2.0
"""How a part of Qwen3-VL is exported alone, from what it was called with in a run of the whole.

It owns turning a call's arguments into the tensors that the host gives a static graph. The graphs are
pyquant.decoder's, vision_static.py and graphs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.ends import HeadProfile
from pyquant.decoder.inputs import positions_of
from pyquant.decoder.masks import text_mask
from pyquant.models.alone import Alone
from pyquant.models.qwen3_vl.deepstack import dense_addends
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.generation import QuantQwen3VLForConditionalGeneration
from pyquant.models.qwen3_vl.graphs import WholeProfile
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.models.qwen3_vl.positions import rope_index, token_types
from pyquant.models.qwen3_vl.text import (
    QuantQwen3VLTextAttention,
    QuantQwen3VLTextDecoderLayer,
    QuantQwen3VLTextModel,
    QuantQwen3VLTextRotaryEmbedding,
    Qwen3VLTextProfile,
    named_addends,
)
from pyquant.models.qwen3_vl.tower import QuantQwen3VLVisionModel
from pyquant.models.qwen3_vl.vision import (
    QuantQwen3VLVisionAttention,
    QuantQwen3VLVisionBlock,
    QuantQwen3VLVisionRotaryEmbedding,
)
from pyquant.models.qwen3_vl.vision_static import VisionProfile
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule
from pyquant.wrap.rotary import RotaryTables


def alone(q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Alone | None:
    """The profile and inputs of the graph of `q`, called with `arguments` while the model ran on `batch`.

    None for a part that its arguments' shapes describe. Raises ProfileError for the rotary modules: their tables are
    constants or inputs of other graphs.
    """
    if isinstance(q, QuantQwen3VLTextRotaryEmbedding | QuantQwen3VLVisionRotaryEmbedding):
        q.as_export_module(None)
        raise AssertionError("rotary modules have no graph")
    if isinstance(q, QuantQwen3VLVisionAttention | QuantQwen3VLVisionBlock | QuantQwen3VLVisionModel):
        name = "pixel_values" if isinstance(q, QuantQwen3VLVisionModel) else "hidden_states"
        return Alone(VisionProfile(batch["image_grid_thw"]), {name: arguments["hidden_states"]})
    if isinstance(q, QuantQwen3VLTextAttention | QuantQwen3VLTextDecoderLayer):
        hidden = arguments["hidden_states"]
        mask = AdditiveMask.of(arguments.get("attention_mask"), hidden.dtype)
        tables = RotaryTables.of(arguments["position_embeddings"], parts=1)
        return Alone(Qwen3VLTextProfile(*hidden.shape[:2]), {"hidden_states": hidden, **_made(hidden, mask, tables)})
    if isinstance(q, QuantQwen3VLTextModel):
        return _text(q, arguments)
    if isinstance(q, QuantQwen3VLModel):
        return _whole(q, arguments)
    if isinstance(q, QuantQwen3VLForConditionalGeneration):
        hidden = _before_norm(q, arguments)
        return Alone(HeadProfile(*hidden.shape[:2]), {"hidden_states": hidden})
    return None


def _made(hidden: Tensor, mask: AdditiveMask | None, tables: RotaryTables) -> dict[str, Tensor]:
    """The inputs that the host makes of positions: mask (B, 1, S, S), cos and signed_sin (B, S, head_dim)."""
    rows, length = hidden.shape[:2]
    values = hidden.new_zeros(rows, 1, length, length) if mask is None else mask.values
    cos, signed_sin = (table.reshape(-1, length, table.shape[-1]).expand(rows, -1, -1) for table in tables)
    return {
        "attention_mask": values.expand(rows, 1, length, length).contiguous(),
        "cos": cos.contiguous(),
        "signed_sin": signed_sin.contiguous(),
    }


def _text(q: QuantQwen3VLTextModel, arguments: Mapping[str, Any]) -> Alone:
    tokens = arguments.get("inputs_embeds")
    if tokens is None:
        tokens = q.embed_tokens(arguments["input_ids"])
    positions, text_positions = positions_of(arguments.get("position_ids"), tokens, 0, q.rotary_emb.AXES)
    features = arguments.get("deepstack_visual_embeds")
    where = arguments.get("visual_pos_masks")
    addends = dense_addends(where, features, tuple(tokens.shape), tokens.dtype, q.taps)
    mask = text_mask(arguments.get("attention_mask"), tokens, None, text_positions)
    made = _made(tokens, mask, q.rotary_emb.tables(tokens, positions))
    profile = Qwen3VLTextProfile(tokens.shape[0], tokens.shape[1], deepstack=len(addends))
    return Alone(profile, {"inputs_embeds": tokens, **named_addends(addends), **made})


def _whole(q: QuantQwen3VLModel, arguments: Mapping[str, Any]) -> Alone:
    ids, given = arguments["input_ids"], arguments.get("image_grid_thw")
    grids: tuple[Grid, ...] = () if given is None else grids_of(given, q.merge)
    types = token_types(ids, q.config.image_token_id, q.config.video_token_id)
    positions, _ = rope_index(types, grids, (), arguments.get("attention_mask"), merge=q.merge)
    text = q.language_model
    embeds = text.embed_tokens(ids)
    mask = text_mask(arguments.get("attention_mask"), embeds, None, None)
    inputs = {"input_ids": ids.to(torch.int32)}
    if grids:
        rows = int((types != 0).sum())
        inputs["pixel_values"] = arguments["pixel_values"]
        inputs["visual_index"] = visual_index(types, rows, 0).to(torch.int32)
    inputs |= _made(embeds, mask, text.rotary_emb.tables(embeds, positions))
    return Alone(WholeProfile(ids.shape[0], ids.shape[1], image_grids=grids), inputs)


def _before_norm(q: QuantQwen3VLForConditionalGeneration, arguments: Mapping[str, Any]) -> Tensor:
    """What enters the final norm, which the head's graph begins with."""
    seen: list[Tensor] = []
    handle = q.model.language_model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            q(**arguments)
    finally:
        handle.remove()
    return seen[0]
