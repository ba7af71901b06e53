# SPDX-License-Identifier: Apache-2.0
"""Per-layer inputs: what each layer adds of a token, from a table of its own and from the embeddings.

It owns their arithmetic, where ids come from when only embeddings are given, and the graph that makes them. The gate in
each layer is layers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyquant.decoder.ends import Counts
from pyquant.decoder.graphs import float_type
from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.text.embedding import QuantGemma4TextScaledWordEmbedding
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import Phase, Role

if TYPE_CHECKING:
    from pyquant.models.gemma4.text.model import QuantGemma4TextModel

CHILDREN = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
SITES = {
    "per_layer_projected": Role.ACTIVATION,
    "per_layer_sum": Role.ACTIVATION,
    "per_layer_inputs": Role.ACTIVATION,
}


@dataclass(frozen=True)
class PerLayerProfile(Counts):
    """The graph between embeddings and layers: inputs_embeds (B, S, D), per_layer_tokens (B, S, L * P), a row of the
    table for each token -> per_layer_inputs (B, S, L, P)."""

    batch_size: int
    seq_len: int
    COUNTS = ("batch_size", "seq_len")

    @property
    def name(self) -> str:
        return f"per_layer_projection_s{self.seq_len}"


def tokens_of_layers(model: QuantGemma4TextModel, ids: Tensor) -> Tensor:
    """ids (B, S) -> rows of the table (B, S, L, P)."""
    rows: Tensor = model.embed_tokens_per_layer(ids)
    return rows.reshape(*ids.shape, len(model.layers), -1)


def combine(model: QuantGemma4TextModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    """(norm(W hidden / sqrt(D)) + tokens) / sqrt(2): hidden (B, S, D), tokens (B, S, L, P) -> (B, S, L, P).

    `hidden` is what enters the first layer: images and audio are in it, and in `tokens` the padding token's row stands
    there.
    """
    width = hidden.shape[-1]
    projected = model.q("per_layer_projected", model.per_layer_model_projection(hidden) * width**-0.5)
    normed = model.per_layer_projection_norm(projected.reshape(tokens.shape))
    total = model.q("per_layer_sum", normed + model.embed_tokens_per_layer.q("act_out", tokens))
    return model.q("per_layer_inputs", total * 2.0**-0.5)


def projection_graph(model: QuantGemma4TextModel, profile: PerLayerProfile) -> GraphAdapter:
    """`combine` as a graph, for the stack or its layers."""
    batch, length, dtype = profile.batch_size, profile.seq_len, float_type(model)
    layers, width = len(model.layers), int(model.config.hidden_size_per_layer_input)

    def call(hidden: Tensor, tokens: Tensor, **_: nn.Module) -> Tensor:
        hidden = model.q("inputs_embeds", hidden)
        tokens = model.embed_tokens_per_layer.q("act_out", tokens)
        return combine(model, hidden, tokens.reshape(batch, length, layers, width))

    parts: dict[str, nn.Module] = {
        "sites": model.sites,
        "table": model.embed_tokens_per_layer.sites,
        "per_layer_model_projection": model.per_layer_model_projection,
        "per_layer_projection_norm": model.per_layer_projection_norm,
    }
    inputs = {
        "inputs_embeds": TensorSpec((batch, length, int(model.config.hidden_size)), dtype),
        "per_layer_tokens": TensorSpec((batch, length, layers * width), dtype),
    }
    return GraphAdapter(model, call, inputs=inputs, outputs=("per_layer_inputs",), name=profile.name, parts=parts)


def ids_of_embeds(table: QuantGemma4TextScaledWordEmbedding, embeds: Tensor) -> Tensor:
    """The ids whose rows `embeds` (B, S, D) are, as transformers looks them up. Raises InputError where a row is none.

    Rows count as equal when every value is; quantized, the rows that the table's wrapper returns are known too.
    """
    flat = embeds.detach().reshape(-1, embeds.shape[-1])
    found = torch.full((len(flat),), -1, dtype=torch.int64, device=flat.device)
    step = max(1, _CHUNK // flat.shape[-1])
    for start in range(0, table.num_embeddings, step):
        if bool((found >= 0).all()):
            break
        ids = torch.arange(start, min(start + step, table.num_embeddings), device=flat.device, dtype=torch.int64)
        rows = [table.float_rows(ids)]
        if table.phase is Phase.QUANTIZED:
            rows.append(table(ids))
        for each in rows:
            _match(flat, each.to(flat.dtype), ids, found)
    if bool((found < 0).any()):
        place = divmod(int((found < 0).nonzero()[0]), embeds.shape[1])
        raise InputError(
            f"inputs_embeds at {place} are no row of the token table, so the per-layer inputs of that token are not "
            "known; pass input_ids, or per_layer_inputs (B, S, layers, width) beside inputs_embeds"
        )
    return found.reshape(embeds.shape[:2])


_CHUNK = 1 << 22  # values of the table that are compared at once
_COLUMNS = 8  # in which nearly all other rows differ, also of a table of two bits


def _match(flat: Tensor, rows: Tensor, ids: Tensor, found: Tensor) -> None:
    """Put into `found` (N,), where it is negative, the first of `ids` (R,) whose row (R, D) that of flat (N, D) is."""
    places = (found < 0).nonzero()[:, 0]
    place, row = (flat[places, 0, None] == rows[None, :, 0]).nonzero().unbind(dim=1)
    for column in range(1, min(_COLUMNS, flat.shape[1])):
        same = flat[places[place], column] == rows[row, column]
        place, row = place[same], row[same]
    while len(place):  # once, unless rows agree in those columns and differ later
        first = torch.ones_like(place, dtype=torch.bool)
        first[1:] = place[1:] != place[:-1]
        at, candidate = places[place[first]], row[first]
        same = (flat[at] == rows[candidate]).all(dim=-1)
        found[at[same]] = ids[candidate[same]]
        left = ~first & (found[places[place]] < 0)
        place, row = place[left], row[left]
