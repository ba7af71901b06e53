# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's whole vision tower: pixels of images and videos in, merged tokens and deepstack features out.

It owns the order of things and HF's calling convention. The modules are vision.py, what grids mean is grids.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pyquant.errors import InputError, UnknownModuleError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.qwen3_vl.grids import Segments, gathered, grids_of, interpolated, position_ids
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.models.qwen3_vl.vision import (
    QuantQwen3VLVisionPatchEmbed,
    QuantQwen3VLVisionPatchMerger,
    QuantQwen3VLVisionRotaryEmbedding,
)
from pyquant.models.qwen3_vl.vision_static import VisionProfile, VisionTables, require_vision_profile, vision_graph
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype
from pyquant.wrap.hf_model import QModel
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import RotaryTables


class PositionTable(QModule):
    """The learned square map of position embeddings. No site: what a grid takes from it goes through the tower's
    `pos_embed`, and in a graph it is a constant."""

    weight: Tensor

    def __init__(self, fp: nn.Embedding, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.weight = fp.weight


@register(hf_class("Qwen3VLVisionModel"))
class QuantQwen3VLVisionModel(QModel):
    """Patches of images and videos -> tokens of merged patches, and the same of some blocks on the way (deepstack).

    The range of `pos_embed` is that of the whole table, whichever grids the calibration shows: what any grid takes
    from the table is between its entries.
    """

    CHILDREN = ("patch_embed", "rotary_pos_emb", "blocks", "merger", "deepstack_merger_list")
    OUTPUT = BaseModelOutputWithPooling
    SITES = {"pos_embed": Role.ACTIVATION, "pos_add": Role.ACTIVATION}
    BLOCKS = "blocks"
    READS = ("merger.norm", "deepstack_merger_list.*.norm")
    WRITES = ("patch_embed.proj", "pos_embed")

    patch_embed: QuantQwen3VLVisionPatchEmbed
    rotary_pos_emb: QuantQwen3VLVisionRotaryEmbedding
    blocks: nn.ModuleList
    merger: QuantQwen3VLVisionPatchMerger
    deepstack_merger_list: nn.ModuleList

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.pos_embed = PositionTable(fp.pos_embed, ctx.child("pos_embed"))
        self.spatial_merge_size = int(fp.spatial_merge_size)
        self.deepstack_visual_indexes = tuple(fp.deepstack_visual_indexes)
        mode = (getattr(fp, "interpolation_mode", "bilinear"), getattr(fp, "interpolation_align_corners", True))
        if mode != ("bilinear", True):
            raise UnknownModuleError(
                f"{ctx.path or 'the model'} resamples its position embeddings by {mode[0]!r}, align_corners={mode[1]}; "
                "pyquant.models.qwen3_vl supports 'bilinear' with aligned corners, which Qwen3-VL has"
            )

    def forward(
        self,
        hidden_states: Tensor,
        grid_thw: Tensor | None = None,
        *,
        tables: VisionTables | None = None,
        **kwargs: Any,
    ) -> Any:
        """hidden_states: pixels (N, pixels of a patch), grid_thw (images and videos, 3) -> HF's output class with
        last_hidden_state (N, V), pooler_output (n, D) and deepstack_features, a list of (n, D).

        HF's precomputed `cu_seqlens`, `position_ids`, `interp_indices` and `interp_weights` are used where given;
        `tables` replaces all of them. `return_dict=False` gives a tuple. Raises InputError for grids that do not
        fit the model or the pixels.
        """
        hf.refuse_recording(kwargs, self.config)
        hidden = self.patch_embed(hidden_states)
        if tables is None:
            tables = self.tables(hidden, grid_thw, kwargs)
        assert tables.pos_embeds is not None, "these are the tables of a block"
        positions = as_dtype(tables.pos_embeds, hidden.dtype)
        hidden = self.q("pos_add", hidden + self.q("pos_embed", positions, observed=self.pos_embed.weight))
        features = []
        for number, block in enumerate(self.blocks):
            hidden = self.run_block(block, _block, hidden, tables.segments, tables.rotary, tables.per_head)
            if number in self.deepstack_visual_indexes:
                tap = self.deepstack_visual_indexes.index(number)
                features.append(self.deepstack_merger_list[tap](hidden))
        out = hf.make_output(
            self.output_type,
            last_hidden_state=hidden,
            pooler_output=self.merger(hidden),
            deepstack_features=features,
        )
        return hf.as_called(out, kwargs, self.config)

    def tables(self, like: Tensor, grid_thw: Any, given: dict[str, Any]) -> VisionTables:
        """What the grids of one call mean, for rows as those of `like` (N, V); HF's precomputed tensors come first."""
        rows, merge, table = like.shape[0], self.spatial_merge_size, self.pos_embed.weight
        ids, cu_seqlens, taps = given.get("position_ids"), given.get("cu_seqlens"), _taps(given)
        if grid_thw is None and (ids is None or cu_seqlens is None or taps is None):
            raise InputError(
                "the vision model needs grid_thw (images and videos, 3), or all that is made of it: position_ids, "
                "cu_seqlens, interp_indices and interp_weights"
            )
        grids = () if grid_thw is None else grids_of(grid_thw, merge, rows)
        if ids is None:
            ids = position_ids(grids, merge, like.device)
        for name, tensor in (("position_ids", ids), ("interp_indices", ids if taps is None else taps[0])):
            if tensor.shape[0] != rows:
                raise InputError(f"{name} has {tensor.shape[0]} rows for {rows} patches")
        return VisionTables(
            interpolated(table, grids, merge) if taps is None else gathered(table, *taps),
            self.rotary_pos_emb.tables(like, ids),
            Segments.of_grids(grids) if cu_seqlens is None else Segments.of(cu_seqlens, rows),
        )

    @torch.no_grad()
    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """pixel_values (N, pixels of a patch) -> image_embeds (n, D) and deepstack_0, deepstack_1, ... (n, D).

        Raises ProfileError for grids that the model cannot merge.
        """
        grids = require_vision_profile(profile, self).check(self.spatial_merge_size)
        weight = self.pos_embed.weight
        like = weight.new_empty(profile.patches, 0)
        count = sum(index in self.deepstack_visual_indexes for index in range(len(self.blocks)))
        return vision_graph(
            self,
            profile,
            self.tables(like, grids, {}),
            _call,
            inputs={"pixel_values": TensorSpec((profile.patches, self.patch_embed.pixels), torch.float32)},
            outputs=("image_embeds", *(f"deepstack_{index}" for index in range(count))),
            name=profile.name,
        )


def _block(block: nn.Module, hidden: Tensor, segments: Segments, rotary: RotaryTables, per_head: bool) -> Tensor:
    out: Tensor = block(hidden, segments, position_embeddings=rotary, per_head=per_head)
    return out


def _call(module: QuantQwen3VLVisionModel, pixel_values: Tensor, tables: VisionTables) -> tuple[Tensor, ...]:
    out = module(pixel_values, tables=tables, return_dict=True)
    return (out.pooler_output, *out.deepstack_features)


def _taps(given: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """HF's precomputed interpolation as indices and weights, each (N, 4); some releases have it as (4, N)."""
    indices, weights = given.get("interp_indices"), given.get("interp_weights")
    if indices is not None and weights is not None:
        return indices, weights
    indices, weights = given.get("bilinear_indices"), given.get("bilinear_weights")
    if indices is not None and weights is not None:
        return indices.transpose(0, 1), weights.transpose(0, 1)
    return None
