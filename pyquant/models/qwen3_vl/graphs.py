# SPDX-License-Identifier: Apache-2.0
"""The graphs that only Qwen3-VL has: the join of text and visual tokens, and the whole model in one.

It owns their profiles, names and shapes. The tower's graphs are vision_static.py, those of the text model
pyquant.decoder; which graphs make a bundle is bundle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyquant.decoder.ends import Counts
from pyquant.decoder.fusion import join
from pyquant.decoder.graphs import StackInputs, float_type
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.fusion import spread
from pyquant.models.qwen3_vl.grids import Grid
from pyquant.models.qwen3_vl.text import named_addends
from pyquant.models.qwen3_vl.vision_static import VisionProfile
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule
from pyquant.wrap.rotary import RotaryTables


@dataclass(frozen=True)
class FusionProfile(Counts):
    """Text and visual tokens into one sequence: text_embeds (B, S, D), visual_embeds (V, D), visual_deepstack_{k}
    (V, D), visual_index int32 (B, S) -> inputs_embeds (B, S, D), deepstack_{k} (B, S, D).

    visual_index is b * S + s where place s of row b holds text, and B * S + r where it holds visual row r.
    `visual_tokens`: V, the most visual rows of one call; rows that nobody looks up may hold anything.
    """

    batch_size: int
    seq_len: int
    visual_tokens: int
    COUNTS = ("batch_size", "seq_len", "visual_tokens")

    @property
    def name(self) -> str:
        return f"fusion_s{self.seq_len}"


@dataclass(frozen=True)
class WholeProfile(Counts):
    """The model in one graph: input_ids int32 (B, S), pixel_values of all `image_grids`, visual_index int32 (B, S),
    attention_mask (B, 1, S, S), cos and signed_sin (B, S, head_dim) -> hidden_states (B, S, D) before the final norm.

    Without grids there are no pixel_values and no visual_index.
    """

    batch_size: int
    seq_len: int
    image_grids: tuple[Grid, ...] = ()
    attention: Literal["batched", "per_head"] = "batched"
    name = "model"
    COUNTS = ("batch_size", "seq_len")


class SitesOf(nn.Module):
    """A wrapper's own sites, for a graph that uses nothing else of it."""

    def __init__(self, wrapper: QModule) -> None:
        super().__init__()
        self.sites = wrapper.sites


def fusion_graph(model: Any, profile: FusionProfile) -> GraphAdapter:
    """Each input passes the site that the graph before it ends with, so that the grids of both are equal."""
    text, visual, taps = model.language_model, model.visual, model.taps
    dtype, size = float_type(text), text.config.hidden_size
    tapped = [block for block in range(len(visual.blocks)) if block in visual.deepstack_visual_indexes][:taps]
    mergers = [visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(block)] for block in tapped]
    ends = [merger.linear_fc2 for merger in (visual.merger, *mergers)]

    def call(embeds: Tensor, *rest: Tensor, **_: nn.Module) -> tuple[Tensor, ...]:
        *features, index = rest
        rows, *deepstack = (end.q("act_out", feature) for end, feature in zip(ends, features, strict=True))
        fused = model.q("fused", join(text.embed_tokens.q("act_out", embeds), rows, index))
        return fused, *(text.q(f"deepstack_{k}", dense) for k, dense in enumerate(spread(deepstack, index)))

    names = ("visual_embeds", *(f"visual_deepstack_{k}" for k in range(taps)))
    inputs = {"text_embeds": TensorSpec((profile.batch_size, profile.seq_len, size), dtype)}
    inputs |= dict.fromkeys(names, TensorSpec((profile.visual_tokens, size), dtype))
    inputs["visual_index"] = TensorSpec((profile.batch_size, profile.seq_len), torch.int32)
    outputs = ("inputs_embeds", *(f"deepstack_{k}" for k in range(taps)))
    wrappers = {"model": model, "language_model": text, "embed_tokens": text.embed_tokens}
    wrappers |= {f"merger_{k}": end for k, end in enumerate(ends)}
    parts = {key: SitesOf(wrapper) for key, wrapper in wrappers.items()}
    return GraphAdapter(model, call, inputs=inputs, outputs=outputs, name=profile.name, parts=parts)


def whole_graph(model: Any, profile: WholeProfile) -> GraphAdapter:
    """Of a QuantQwen3VLModel. Raises ProfileError for images with more tokens than the sequence has places."""
    text, shape = model.language_model, (profile.batch_size, profile.seq_len)
    dtype = float_type(text)
    images = VisionProfile(profile.image_grids, profile.attention) if profile.image_grids else None
    if images is not None and images.tokens(model.merge) > profile.batch_size * profile.seq_len:
        raise ProfileError(
            f"the images of the profile make {images.tokens(model.merge)} tokens, more than {profile.batch_size} "
            f"row(s) of {profile.seq_len}; use a longer sequence or smaller grids"
        )
    tower = None if images is None else model.visual.as_export_module(images)
    per_head = profile.attention == "per_head"

    def call(ids: Tensor, *rest: Tensor, **_: nn.Module) -> Tensor:
        *visual, mask, cos, signed_sin = rest
        hidden: Tensor = text.embed_tokens(ids)
        addends: tuple[Tensor, ...] = ()
        if tower is not None:
            pixels, index = visual
            rows, *features = tower(pixels)
            hidden, addends = model.q("fused", join(hidden, rows, index)), spread(features[: model.taps], index)
        tables = {"": RotaryTables(cos.unsqueeze(2), signed_sin.unsqueeze(2))}
        masks = {"": AdditiveMask(mask)}
        extras = named_addends(addends)
        out: Tensor = text.stack(StackInputs(hidden, tables, masks, extras=extras, per_head=per_head))
        return out

    inputs = {"input_ids": TensorSpec(shape, torch.int32)}
    if tower is not None:
        inputs |= {"pixel_values": tower.input_specs["pixel_values"], "visual_index": TensorSpec(shape, torch.int32)}
    table = TensorSpec((*shape, text.kinds[0].head_dim), dtype)
    inputs |= {
        "attention_mask": TensorSpec((shape[0], 1, shape[1], shape[1]), dtype),
        "cos": table,
        "signed_sin": table,
    }
    parts = {"module": model} if tower is None else {"module": model, "tower": tower}
    return GraphAdapter(model, call, inputs=inputs, outputs=("hidden_states",), name=profile.name, parts=parts)
