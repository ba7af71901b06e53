# SPDX-License-Identifier: Apache-2.0
"""Which graphs a Profile makes of a Qwen3-VL, and the manifest for a host that runs them.

It owns what Qwen3-VL adds to a decoder's bundle: vision and fusion graphs, the whole model in one, three position axes.
host.py follows the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyquant.decoder.bundle import LAST_STEPS, LAST_TOKEN, NUMBERS, TABLES, BundleParts, Part, refuse_changing
from pyquant.decoder.model import DecoderModel
from pyquant.models.qwen3_vl.flow import TENSORS, flow
from pyquant.models.qwen3_vl.generation import QuantQwen3VLForConditionalGeneration
from pyquant.models.qwen3_vl.graphs import FusionProfile, WholeProfile
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.models.qwen3_vl.text import Qwen3VLTextProfile
from pyquant.models.qwen3_vl.vision_static import VisionProfile


class Qwen3VLParts(BundleParts):
    """The graphs and the manifest of a Qwen3VLForConditionalGeneration or a Qwen3VLModel."""

    FAMILY = "qwen3_vl"
    MODELS = (QuantQwen3VLForConditionalGeneration, QuantQwen3VLModel)
    model: QuantQwen3VLModel

    def __init__(self, profile: Any, q: Any) -> None:
        super().__init__(profile, q)
        if profile.image_grids:
            self.require_ranges(self.model.visual, "image_grids")

    @property
    def text(self) -> DecoderModel:
        return self.model.language_model

    def graphs(self) -> dict[str, Part]:
        if self.profile.layers == "whole":
            whole = self._whole()
            parts: list[Part] = [(self.model, whole), *self.head()]
            return {profile.name: (part, profile) for part, profile in parts}
        return super().graphs()

    def _whole(self) -> WholeProfile:
        profile = self.profile
        return WholeProfile(profile.batch_size, profile.max_seq_len, profile.image_grids, profile.attention)

    def encoders(self) -> list[Part]:
        return [(self.model.visual, VisionProfile(grid, self.profile.attention)) for grid in self.profile.image_grids]

    def before_prefill(self, length: int) -> list[Part]:
        if not self.profile.image_grids:
            return []
        batch = self.profile.batch_size
        return [(self.model, FusionProfile(batch, length, batch * length))]

    def text_profile(self, length: int, past: int, layer: int | None) -> Qwen3VLTextProfile:
        profile = self.profile
        decodes = past > 0 and length == 1  # one token of an answer, which is text
        taps = self.model.taps if profile.image_grids and not decodes else 0
        return Qwen3VLTextProfile(
            profile.batch_size, length, past, deepstack=taps, layer=layer, attention=profile.attention
        )

    # --- the manifest ---

    def manifest(self) -> dict[str, Any]:
        entries = super().manifest()
        if self.profile.layers == "whole":
            del entries["cache"]
        return entries

    def more(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "image_grids": [list(grid) for grid in self.profile.image_grids],
            "deepstack": self.model.taps if self.profile.image_grids else 0,
            "pixels": _pixels(config.vision_config),
            "positions": {
                "spatial_merge_size": self.model.merge,
                **{name: int(getattr(config, name)) for name in _TOKENS if getattr(config, name, None) is not None},
            },
        }

    def host_data(self) -> dict[str, Any]:
        tokens = {name: getattr(self.model.config, f"{name}_token_id", None) for name in TENSORS}
        grids = self.profile.image_grids
        return flow(
            super().host_data(),
            merge=self.model.merge,
            tokens={name: int(token) for name, token in tokens.items() if token is not None},
            taps=self.model.taps if grids else 0,
            fused=bool(grids),
            whole=grids if self.profile.layers == "whole" else None,
        )

    def steps(self) -> tuple[str, ...]:
        return _WHOLE_STEPS if self.profile.layers == "whole" else _STEPS

    @torch.no_grad()
    def rotary(self, variant: str) -> dict[str, Any]:
        """HF's frequencies, and which position axis drives each, asked of HF's own module one axis at a time."""
        refuse_changing(self.text.rotary_emb.rope_type())
        rotary = self.text.rotary_emb.float_rotary
        frequencies, _ = self.text.rotary_emb.frequencies()
        driven = []
        for axis in range(3):
            at = torch.zeros(3, 1, 1, dtype=torch.int64, device="cpu")
            at[axis] = 1
            _, sin = rotary(frequencies, at.to(rotary.inv_freq.device))
            driven.append(sin.flatten()[: len(frequencies)].cpu() != 0)
        axes: Tensor = torch.stack(driven).int().argmax(dim=0)
        return {
            **super().rotary(variant),
            "axis": axes.tolist(),
            "mrope_section": [int((axes == axis).sum()) for axis in range(3)],
            "interleaved": bool((axes.diff() < 0).any()),
        }

    def describe(self, profile: Any) -> dict[str, Any]:
        if isinstance(profile, VisionProfile):
            return {"kind": "vision", "grids": [list(grid) for grid in profile.grids], "meaning": _MEANING["vision"]}
        if isinstance(profile, FusionProfile):
            places = profile.batch_size * profile.seq_len
            return {
                "kind": "fusion",
                "seq_len": profile.seq_len,
                "visual_tokens": profile.visual_tokens,
                "meaning": _MEANING["fusion"],
                "range": {"visual_index": [0, places + profile.visual_tokens - 1]},
            }
        if isinstance(profile, WholeProfile):
            images = VisionProfile(profile.image_grids).tokens(self.model.merge) if profile.image_grids else 0
            ranges = {**self.id_range(), "visual_index": [0, profile.batch_size * profile.seq_len + images - 1]}
            return {"kind": "model", "seq_len": profile.seq_len, "meaning": _MEANING["model"], "range": ranges}
        return super().describe(profile)

    def text_meaning(self) -> Mapping[str, str]:
        return {**super().text_meaning(), **_DEEPSTACK, "deepstack": "the addend after this layer, zero at text"}


_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def _pixels(vision: Any) -> dict[str, Any]:
    """What a row of pixel_values is made of, and in which order rows stand, as HF's image processor has them."""
    return {
        "channels": int(vision.in_channels),
        "frames": int(vision.temporal_patch_size),
        "patch_size": int(vision.patch_size),
        "row": "channel, frame, y, x of one patch; an image is its own next frame",
        "order": "grid time, then merge x merge blocks line by line, then the patches of a block line by line",
    }


_DEEPSTACK = {"deepstack_*": "the addend after decoder layer *, zero at text"}
_INDEX = (
    "row of [text ; visual rows] for each place: b * seq_len + s where place s of row b holds text, batch_size * "
    "seq_len + r where it holds visual row r"
)
_MEANING: dict[str, dict[str, str]] = {
    "vision": {
        "pixel_values": "patches of the image as HF's processor makes them, one row each",
        "image_embeds": "visual tokens, one row each",
        "deepstack_*": "what is added to the visual tokens after decoder layer * (0 is the first), one row each",
    },
    "fusion": {
        "text_embeds": "token_embedding's output",
        "visual_embeds": "image_embeds of all images, then all videos, in a row; unused rows may hold anything",
        "visual_deepstack_*": "deepstack_* of the same, in the same order",
        "visual_index": _INDEX,
        "inputs_embeds": "text and visual embeddings at their places",
        **_DEEPSTACK,
    },
    "model": {
        **TABLES,
        "input_ids": "token ids; at visual places any",
        "pixel_values": "patches of all images of the profile in turn",
        "visual_index": _INDEX,
        "hidden_states": "hidden states before the final norm",
    },
}
_PIXELS = (
    "pixels: resize an image to height * patch_size x width * patch_size of a grid, rescale and normalize as the "
    "checkpoint's preprocessor_config.json says (it is not in this bundle, nor is the tokenizer), cut it by `pixels`"
)
_POSITIONS = (
    "positions: text takes one step on all three axes (time, height, width); an image of h x w patches starts where "
    "the text before it ended, its tokens differ in height and width by their place among h / merge x w / merge, and "
    "what follows starts max(h, w) / merge further; a video does so frame by frame",
    "rotary: angle j of a token is inv_freq[j] times its position on axis[j]; cos and sin are attention_scaling times "
    "those of the angles, written twice side by side, and the first half of sin is negated",
)
_STEPS = (
    NUMBERS,
    _PIXELS,
    "remove padding: each row starts at place 0 of a prefill length that holds the longest",
    "vision: one call for each image; a video by its own grid, or frame by frame; rows in the order of the prompt, "
    "images before videos",
    "token_embedding, and fusion when there are visual rows; a prompt without any goes to prefill as it is, with zeros "
    "for deepstack",
    *_POSITIONS,
    *LAST_STEPS,
)
_WHOLE_STEPS = (
    NUMBERS,
    _PIXELS,
    "remove padding: each row starts at place 0 of max_seq_len places",
    *_POSITIONS,
    "model: one call with all images of the profile, in order, and after them the videos; mask later places and places "
    "from the end of each row on",
    LAST_TOKEN,
    "the new token stands at the next place of its row, its position is that of the last token plus 1 on every axis; "
    "call the model again, with the same pixels",
)
