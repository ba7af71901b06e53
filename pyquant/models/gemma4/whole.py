# SPDX-License-Identifier: Apache-2.0
"""A Gemma4 before its head in one graph, with the images and clips of one kind of prompt.

It owns the profile, names and shapes. The host that runs it once for each token is whole_host.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyquant.decoder.ends import Counts
from pyquant.decoder.fusion import join
from pyquant.decoder.graphs import Attention, Dispatch, StackInputs, float_type
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.audio.profiles import AudioProfile
from pyquant.models.gemma4.graphs import SoftTokensProfile, soft_tokens_graph
from pyquant.models.gemma4.text.model import IDS
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.rotary import RotaryTables

if TYPE_CHECKING:
    from pyquant.models.gemma4.model import QuantGemma4Model


@dataclass(frozen=True)
class WholeProfile(Counts):
    """The model in one graph: input_ids int32 (B, S), pixel_values (images, patches, pixels) of all `image_shapes`,
    padded to the largest, input_features_{i} (1, frames, mel) and audio_mask_{i} (1, frames) of each of
    `audio_lengths`, place_index int32 (B, S) over [text ; image rows ; rows of each clip, padding included], a mask and
    rotary tables for each kind of layer -> hidden_states (B, S, D) before the final norm.

    Without images or clips their inputs are not there, nor is place_index.
    """

    batch_size: int
    seq_len: int
    image_shapes: tuple[tuple[int, int], ...] = ()
    audio_lengths: tuple[int, ...] = ()
    attention: Attention = "batched"
    experts: Dispatch | None = None
    name = "model"
    COUNTS = ("batch_size", "seq_len")

    def towers(self) -> dict[str, Any]:
        """Name of a tower's graph within this one -> the profile of the tower."""
        found: dict[str, Any] = {"vision": VisionProfile(grid=self.image_shapes)} if self.image_shapes else {}
        return found | {f"audio_{i}": AudioProfile(length) for i, length in enumerate(self.audio_lengths)}


def whole_graph(model: QuantGemma4Model, profile: WholeProfile) -> GraphAdapter:
    """Of a QuantGemma4Model. Raises ProfileError for a tower that it does not have."""
    text, shape = model.language_model, (profile.batch_size, profile.seq_len)
    dtype, per_head = float_type(text), profile.attention == "per_head"
    if not text.causal:
        raise ProfileError("the text model sees later tokens everywhere; export it with TextProfile")
    towers = {
        name: soft_tokens_graph(model, SoftTokensProfile(tower, name)) for name, tower in profile.towers().items()
    }
    inputs = {"input_ids": TensorSpec(shape, torch.int32)}
    taken: dict[str, list[str]] = {}
    for name, tower in towers.items():
        ends = {"input_features": f"input_features_{name[6:]}", "attention_mask": f"audio_mask_{name[6:]}"}
        taken[name] = [ends.get(each, each) for each in tower.input_specs]
        inputs |= dict(zip(taken[name], tower.input_specs.values(), strict=True))
    if towers:
        inputs["place_index"] = TensorSpec(shape, torch.int32)
    for kind in text.variants.values():
        inputs[kind.mask] = TensorSpec((shape[0], 1, shape[1], shape[1]), dtype)
        inputs |= dict.fromkeys(kind.tables, TensorSpec((*shape, kind.head_dim), dtype))
    names = tuple(inputs)

    def call(*tensors: Tensor, **_: nn.Module) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        ids = given["input_ids"]
        hidden: Tensor = text.embed_tokens(ids)
        if towers:
            rows = [tower(*(given[each] for each in taken[name])) for name, tower in towers.items()]
            hidden = model.q("fused", join(hidden, rows, given["place_index"]))
        tables = {
            name: RotaryTables(*(given[table].unsqueeze(2) for table in kind.tables))
            for name, kind in text.variants.items()
        }
        masks = {name: AdditiveMask(given[kind.mask]) for name, kind in text.variants.items()}
        extras = {IDS: ids} if text.per_layer_width else {}
        stacked = StackInputs(hidden, tables, masks, extras=extras, per_head=per_head, experts=profile.experts)
        out: Tensor = text.stack(stacked)
        return out

    parts: dict[str, nn.Module] = {"module": model, **towers}
    return GraphAdapter(model, call, inputs=inputs, outputs=("hidden_states",), name=profile.name, parts=parts)
