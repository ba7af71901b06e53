# SPDX-License-Identifier: Apache-2.0
"""The graphs between Gemma4's towers and its text model: a tower with its embedder, and the join of all rows.

It owns their profiles, names and shapes. The graphs of a tower alone are in its folder, those of the text model
pyquant.decoder's; which graphs make a bundle is bundle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyquant.decoder.fusion import join
from pyquant.decoder.graphs import float_type
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.vision.profiles import VisionProfile
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule

if TYPE_CHECKING:
    from pyquant.models.gemma4.model import QuantGemma4Model


@dataclass(frozen=True)
class FusionProfile:
    """Text and rows of towers into one sequence: text_embeds (B, S, D), image_embeds (V, D), audio_embeds (A, D),
    place_index int32 (B, S) -> inputs_embeds (B, S, D).

    place_index is b * S + s where place s of row b holds text, B * S + r where it holds row r of image_embeds (images,
    then videos), B * S + V + r for row r of audio_embeds. `visual_tokens`, `audio_tokens`: V and A, the most rows of
    one call, 0 for a model or a bundle without; rows that nobody looks up may hold anything.
    """

    batch_size: int
    seq_len: int
    visual_tokens: int = 0
    audio_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seq_len", 1), ("visual_tokens", 0), ("audio_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ProfileError(f"FusionProfile.{name} is an integer of at least {least}, got {value!r}")
        if not self.visual_tokens + self.audio_tokens:
            raise ProfileError("FusionProfile joins visual_tokens or audio_tokens to text, and both are 0")

    @property
    def name(self) -> str:
        return f"fusion_s{self.seq_len}"


@dataclass(frozen=True)
class SoftTokensProfile:
    """A tower and its embedder in one graph. `tower`: the tower's own profile, whose inputs this graph has; outputs:
    image_embeds (real tokens of all images, D), or audio_embeds (clips * tokens, D)."""

    tower: Any
    name: str


def fusion_graph(model: QuantGemma4Model, profile: FusionProfile) -> GraphAdapter:
    """Each input passes the site that the graph before it ends with, so that the grids of both are equal."""
    text = model.language_model
    dtype, size = float_type(text), int(text.config.hidden_size)
    ends: dict[str, QModule] = {}
    inputs = {"text_embeds": TensorSpec((profile.batch_size, profile.seq_len, size), dtype)}
    for name, count, embedder in (
        ("image_embeds", profile.visual_tokens, model.embed_vision),
        ("audio_embeds", profile.audio_tokens, model.embed_audio),
    ):
        if not count:
            continue
        if embedder is None:
            raise ProfileError(f"the profile has {count} rows of {name}, and the model has no tower for them")
        ends[name] = embedder.embedding_projection
        inputs[name] = TensorSpec((count, size), dtype)

    def call(embeds: Tensor, *rest: Tensor, **_: nn.Module) -> Tensor:
        *given, index = rest
        rows = [end.q("act_out", each) for end, each in zip(ends.values(), given, strict=True)]
        return model.q("fused", join(text.embed_tokens.q("act_out", embeds), rows, index))

    inputs["place_index"] = TensorSpec((profile.batch_size, profile.seq_len), torch.int32)
    parts = {"model": model.sites, "embed_tokens": text.embed_tokens.sites}
    parts |= {name: end.sites for name, end in ends.items()}
    return GraphAdapter(model, call, inputs=inputs, outputs=("inputs_embeds",), name=profile.name, parts=parts)


def soft_tokens_graph(model: QuantGemma4Model, profile: SoftTokensProfile) -> GraphAdapter:
    """Raises ProfileError for a tower that the model does not have."""
    visual = isinstance(profile.tower, VisionProfile)
    tower = model.vision_tower if visual else model.audio_tower
    embedder = model.embed_vision if visual else model.embed_audio
    if tower is None or embedder is None:
        raise ProfileError(f"the model has no tower for {type(profile.tower).__name__}")
    graph = tower.as_export_module(profile.tower)

    def call(*given: Tensor, tower: nn.Module, embedder: nn.Module) -> Tensor:
        made = tower(*given)
        soft: Tensor = made if isinstance(made, Tensor) else made[0]
        rows: Tensor = embedder(soft.reshape(-1, soft.shape[-1]))
        return rows

    return GraphAdapter(
        model,
        call,
        inputs=graph.input_specs,
        outputs=("image_embeds" if visual else "audio_embeds",),
        name=profile.name,
        parts={"tower": graph, "embedder": embedder},
    )
