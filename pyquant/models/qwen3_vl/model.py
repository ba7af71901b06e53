# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL without its head: vision tower, text model, the join of their tokens, and positions, as HF calls them.

It owns what HF's forward does between the two. The join is fusion.py, positions are positions.py, static graphs
graphs.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.decoder.inputs import given_of
from pyquant.decoder.multimodal import MultimodalModel, length_of, whole_rows
from pyquant.errors import InputError, ProfileError
from pyquant.models.qwen3_vl.deltas import Deltas
from pyquant.models.qwen3_vl.fusion import visual_index
from pyquant.models.qwen3_vl.graphs import FusionProfile, WholeProfile, fusion_graph, whole_graph
from pyquant.models.qwen3_vl.grids import Grid, grids_of
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.models.qwen3_vl.pixels import present, require_floating
from pyquant.models.qwen3_vl.positions import IMAGE, TEXT, VIDEO, continued, rope_index, token_types, visual_tokens
from pyquant.models.qwen3_vl.text import QuantQwen3VLTextModel
from pyquant.models.qwen3_vl.tower import QuantQwen3VLVisionModel
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import WrapContext
from pyquant.wrap.registry import register


class Encoded(NamedTuple):
    """Visual tokens as the tower made them: rows (V, D), images before videos, and the same of each deepstack tap."""

    rows: Tensor
    deepstack: tuple[Tensor, ...]
    images: int
    videos: int


@register(hf_class("Qwen3VLModel"))
class QuantQwen3VLModel(MultimodalModel):
    """Vision tower and text model; visual tokens replace the placeholders of the prompt."""

    CHILDREN = ("visual", "language_model")
    OUTPUT = BaseModelOutputWithPast
    WRITES_TO = {"language_model": ("visual.merger.linear_fc2", "visual.deepstack_merger_list.*.linear_fc2")}
    visual: QuantQwen3VLVisionModel
    language_model: QuantQwen3VLTextModel

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        tapped = sum(block in self.visual.deepstack_visual_indexes for block in range(len(self.visual.blocks)))
        self.taps = min(tapped, len(self.language_model.layers))
        self.language_model.set_taps(self.taps)
        self.merge = self.visual.spatial_merge_size
        self.rope_deltas: Tensor | None = None  # of the last prompt, where HF keeps it
        self.deltas = Deltas()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids (B, S) or inputs_embeds (B, S, D), pixels (patches, pixels of a patch) with grids (images, 3)
        -> HF's output class: last_hidden_state (B, S, D), the cache (`past_key_values` in older releases, and
        by either name), and rope_deltas or image_outputs and video_outputs where HF has these fields.

        A grid table of no rows is no image. Without position_ids they come from mm_token_type_ids (absent: from
        input_ids) and the grids; with a cache they go on from where the prompt in that very cache ended. Of
        inputs_embeds alone they are those of text, as in HF.
        While calibrating, padding that a 2-D mask names is not observed. Raises InputError for inputs that contradict
        each other; while calibrating, also for a prompt with placeholders and no pixels, which HF runs as text.
        """
        hf.refuse_recording(kwargs)
        cache = hf.take_cache(cache, kwargs)
        given = given_of(input_ids, inputs_embeds)
        pixel_values, image_grid_thw = present(pixel_values, image_grid_thw)
        pixel_values_videos, video_grid_thw = present(pixel_values_videos, video_grid_thw)
        towers = dict(mm_encoder_outputs or {})
        encoded = self._encoded(towers, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        if self.observes and not length_of(cache):
            self._require_visual(given, encoded)
        index = None if encoded is None else visual_index(self._places(given), encoded.images, encoded.videos)
        if position_ids is None:
            grids = (_grids(image_grid_thw, self.merge), _grids(video_grid_thw, self.merge))
            position_ids, found = self._positions(given, mm_token_type_ids, grids, attention_mask, cache)
        else:
            found = self._found(position_ids, given, attention_mask, cache)
        rows = () if encoded is None else (encoded.rows,)
        hidden = self.fused(given, rows, index, attention_mask, cache)
        as_object = kwargs.pop("return_dict", None)
        visual: dict[str, Any] = {}
        if encoded is not None and index is not None:
            places = index >= index.numel()
            order = index[places] - index.numel()
            visual = {
                "visual_pos_masks": places,
                "deepstack_visual_embeds": [feature.index_select(0, order) for feature in encoded.deepstack],
            }
        out = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=hidden,
            return_dict=True,
            **visual,
            **kwargs,
        )
        cache = hf.cache_of(out)
        self.deltas.note(cache, found)
        out = hf.make_output(
            self.output_type,
            last_hidden_state=out.last_hidden_state,
            cache=cache,
            rope_deltas=self.rope_deltas,
            image_outputs=towers.get("image"),
            video_outputs=towers.get("video"),
        )
        return hf.as_called(out, {"return_dict": as_object}, self.config)

    # --- what HF's callers use ---

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        """The vision model's output, with pooler_output split into one (n, D) per image; and deepstack_features too in
        releases of transformers that split them."""
        weight = self.visual.pos_embed.weight
        require_floating(pixel_values)
        kwargs["return_dict"] = True
        out = self.visual(pixel_values.type(weight.dtype), grid_thw=image_grid_thw, **kwargs)
        sizes = [visual_tokens(grid, self.merge) for grid in _grids(image_grid_thw, self.merge)]
        out.pooler_output = torch.split(out.pooler_output, sizes)
        if _splits_deepstack():
            out.deepstack_features = [torch.split(feature, sizes) for feature in out.deepstack_features]
        return out

    def get_video_features(
        self, pixel_values_videos: Tensor, video_grid_thw: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As get_image_features, one entry per video."""
        return self.get_image_features(pixel_values_videos, video_grid_thw, **kwargs)

    def get_placeholder_mask(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The places of images and of videos, bool (B, S, 1) each. Raises InputError when features are given and
        their number is another."""
        types = self._places(inputs_embeds if input_ids is None else input_ids)
        for kind, features in ((IMAGE, image_features), (VIDEO, video_features)):
            if features is not None:
                counts = (len(features), 0) if kind == IMAGE else (0, len(features))
                visual_index(torch.where(types == kind, types, TEXT), *counts)
        return (types == IMAGE).unsqueeze(-1), (types == VIDEO).unsqueeze(-1)

    def get_rope_index(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """position_ids (3, B, S) and rope_deltas (B, 1) of a prompt; see positions.rope_index."""
        types = self.token_types(input_ids) if mm_token_type_ids is None else mm_token_type_ids
        mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        images, videos = _grids(image_grid_thw, self.merge), _grids(video_grid_thw, self.merge)
        return rope_index(types, images, videos, mask, merge=self.merge)

    # --- the steps of forward ---

    def token_types(self, input_ids: Tensor) -> Tensor:
        """0 for text, 1 at an image's placeholder, 2 at a video's: int64 (B, S)."""
        return token_types(input_ids, self.config.image_token_id, self.config.video_token_id)

    def _places(self, given: Tensor) -> Tensor:
        """Token types of ids; or of embeddings, by the placeholders' rows of the table, quantized or not."""
        if not given.is_floating_point():
            return self.token_types(given)
        tokens = {IMAGE: self.config.image_token_id, VIDEO: self.config.video_token_id}
        return self.kinds_of_embeds(given, tokens)

    def _encoded(
        self,
        outputs: dict[str, Any],
        pixels: Tensor | None,
        image_grid_thw: Tensor | None,
        video_pixels: Tensor | None,
        video_grid_thw: Tensor | None,
    ) -> Encoded | None:
        if outputs and (pixels is not None or video_pixels is not None):
            raise InputError("give pixel_values or mm_encoder_outputs, which are made of them, and not both")
        if pixels is not None:
            outputs["image"] = self.get_image_features(pixels, image_grid_thw)
        if video_pixels is not None:
            outputs["video"] = self.get_video_features(video_pixels, video_grid_thw)
        made = [outputs[name] for name in ("image", "video") if outputs.get(name) is not None]
        if not made:
            return None
        rows = [whole_rows(out.pooler_output) for out in made]
        features = zip(
            *([whole_rows(feature) for feature in out.deepstack_features[: self.taps]] for out in made), strict=True
        )
        images = len(rows[0]) if outputs.get("image") is not None else 0
        return Encoded(
            torch.cat(rows), tuple(torch.cat(parts) for parts in features), images, sum(map(len, rows)) - images
        )

    def _require_visual(self, given: Tensor, encoded: Encoded | None) -> None:
        """Raise InputError for placeholders without images: their embedding, which no device reads, would widen ranges.

        visual_index raises for one kind that is missing. The images of a prompt in a cache came with that prompt.
        """
        if encoded is None and (count := int((self._places(given) != TEXT).sum())):
            raise InputError(
                f"the prompt has {count} image or video placeholder tokens and nothing to put there; a calibration "
                "batch needs pixel_values with image_grid_thw (videos: pixel_values_videos, video_grid_thw), or a "
                "prompt of text alone"
            )

    def _positions(
        self,
        given: Tensor,
        types: Tensor | None,
        grids: tuple[Sequence[Grid], Sequence[Grid]],
        mask: Tensor | None,
        cache: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        """position_ids (None: the text model counts) and the rope deltas after this call."""
        batch, length = given.shape[:2]
        past = length_of(cache)
        mask = mask if mask is not None and mask.dim() == 2 else None
        deltas = self.deltas.of(cache, self.rope_deltas) if past else None
        if given.is_floating_point() or not any(grids):
            types = None
        elif types is None:
            types = self.token_types(given)
        else:
            types = types[:, -length:].to(given.device)  # in decoding some releases pass those of the whole prompt
        if types is None or (past and not bool(types.any())):
            if not past:
                self.rope_deltas = None
            if deltas is None:
                return None, None
            return continued(length, past, deltas, mask, batch).to(given.device), deltas
        start = None
        if past:
            before = (
                torch.full((batch, 1), past, dtype=torch.int64, device="cpu")
                if mask is None
                else mask[:, :past].sum(dim=1, keepdim=True).cpu()
            )
            start = before if deltas is None else before + deltas.cpu()
        now = None if mask is None else mask[:, -length:]
        positions, added = rope_index(types, *grids, now, merge=self.merge, start=start)
        self.rope_deltas = added if deltas is None else added + deltas.to(added.device)
        return positions, self.rope_deltas

    def _found(self, position_ids: Tensor | None, given: Tensor, mask: Tensor | None, cache: Any) -> Tensor | None:
        """The rope deltas that positions given by the caller amount to."""
        if position_ids is None:
            return None
        axes = position_ids[None] if position_ids.dim() == 2 else position_ids[-3:]
        tokens = length_of(cache) + given.shape[1]
        padded = mask is not None and mask.dim() == 2 and mask.shape[1] >= tokens
        count = (mask[:, :tokens] != 0).sum(dim=1, keepdim=True) if padded and mask is not None else tokens
        return axes.amax(dim=(0, 2)).unsqueeze(1) + 1 - count

    # --- static graphs ---

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """The join alone (FusionProfile), or all of the model (WholeProfile). The other graphs belong to its parts."""
        if isinstance(profile, FusionProfile):
            return fusion_graph(self, profile)
        if isinstance(profile, WholeProfile):
            return whole_graph(self, profile)
        raise ProfileError(
            f"{type(self).__name__} is exported graph by graph: pyquant.export_bundle(q, folder, "
            "qwen3_vl.Profile(...)), or its parts, or one of FusionProfile and WholeProfile; got "
            f"{type(profile).__name__}"
        )


def _grids(grid_thw: Tensor | None, merge: int) -> tuple[Grid, ...]:
    return () if grid_thw is None or len(grid_thw) == 0 else grids_of(grid_thw, merge)


def _splits_deepstack() -> bool:
    """Releases that take a tower's output back (mm_encoder_outputs) have it split by image throughout."""
    return "mm_encoder_outputs" in inspect.signature(hf_class("Qwen3VLModel").forward).parameters
