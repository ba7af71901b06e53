# SPDX-License-Identifier: Apache-2.0
"""How a part of a language model is exported alone, from what it was called with in a run of the whole.

It owns turning a call's arguments into the tensors that the host gives a static graph. The graphs are graphs.py and
ends.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.causal_lm import CausalLM
from pyquant.decoder.ends import HeadProfile
from pyquant.decoder.graphs import TextProfile
from pyquant.decoder.inputs import positions_of
from pyquant.decoder.layers import DecoderAttention, DecoderLayer
from pyquant.decoder.model import DecoderModel, DecoderRotary
from pyquant.exporter.profile import Alone
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule
from pyquant.wrap.rotary import RotaryTables


def alone(q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Alone | None:
    """The profile and inputs of the graph of `q`, called with `arguments` while the model ran on `batch`.

    None for a part that its arguments' shapes describe. Raises ProfileError for the rotary module: its tables are
    inputs of other graphs.
    """
    if isinstance(q, DecoderRotary):
        q.as_export_module(None)
    if isinstance(q, DecoderAttention | DecoderLayer):
        return layer_alone(q, arguments, TextProfile)
    if isinstance(q, DecoderModel):
        tokens, positions, text_positions = model_tokens(q, arguments)
        masks = q.masks(arguments.get("attention_mask"), tokens, None, text_positions)
        profile = TextProfile(tokens.shape[0], tokens.shape[1])
        return Alone(profile, {"inputs_embeds": tokens, **graph_tables(tokens, q, masks, q.tables(tokens, positions))})
    if isinstance(q, CausalLM):
        hidden = before_norm(q, arguments)
        return Alone(HeadProfile(hidden.shape[0], hidden.shape[1]), {"hidden_states": hidden})
    return None


def layer_alone(q: DecoderAttention | DecoderLayer, arguments: Mapping[str, Any], profile: type[TextProfile]) -> Alone:
    """Of a layer or its attention."""
    attention = q if isinstance(q, DecoderAttention) else q.self_attn
    hidden = arguments["hidden_states"]
    mask = AdditiveMask.of(arguments.get("attention_mask"), hidden.dtype)
    tables = RotaryTables.of(arguments["position_embeddings"], parts=1)
    made = table_inputs(hidden, mask, tables)
    names = dict(zip(made, (attention.kind.mask, *attention.kind.tables), strict=True))
    inputs = {names[name]: value for name, value in made.items()}
    return Alone(profile(hidden.shape[0], hidden.shape[1]), {"hidden_states": hidden, **inputs})


def model_tokens(q: DecoderModel, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Embeddings (B, S, D), positions and text positions of a call of a text model."""
    tokens = arguments.get("inputs_embeds")
    if tokens is None:
        tokens = q.embed_tokens(arguments["input_ids"])
    return tokens, *positions_of(arguments.get("position_ids"), tokens, 0, q.axes)


def graph_tables(
    hidden: Tensor, q: DecoderModel, masks: Mapping[str, AdditiveMask], tables: Mapping[str, RotaryTables]
) -> dict[str, Tensor]:
    """The masks and tables of each variant, by the names of the graph inputs."""
    found: dict[str, Tensor] = {}
    for variant, kind in q.variants.items():
        made = table_inputs(hidden, masks[variant], tables[variant])
        found |= dict(zip((kind.mask, *kind.tables), made.values(), strict=True))
    return found


def table_inputs(hidden: Tensor, mask: AdditiveMask | None, tables: RotaryTables) -> dict[str, Tensor]:
    """What the host makes of positions: mask (B, 1, S, S), cos and signed_sin (B, S, head_dim)."""
    rows, length = hidden.shape[:2]
    values = hidden.new_zeros(rows, 1, length, length) if mask is None else mask.values
    cos, signed_sin = (table.reshape(-1, length, table.shape[-1]).expand(rows, -1, -1) for table in tables)
    return {
        "attention_mask": values.expand(rows, 1, length, length).contiguous(),
        "cos": cos.contiguous(),
        "signed_sin": signed_sin.contiguous(),
    }


def before_norm(q: CausalLM, arguments: Mapping[str, Any]) -> Tensor:
    """What enters the final norm, which the head's graph begins with."""
    seen: list[Tensor] = []
    handle = q.text.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            q(**arguments)
    finally:
        handle.remove()
    return seen[0]
