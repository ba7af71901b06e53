# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL with its head: HF's calling convention, and generate() over the quantized tree.

It owns what HF's class adds to a language model with a head. All before the head is model.py, the head and HF's loop
are pyquant.decoder.causal_lm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyquant.decoder.causal_lm import CausalLM
from pyquant.decoder.model import DecoderModel
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.wrap.registry import register


@register(hf_class("Qwen3VLForConditionalGeneration"))
class QuantQwen3VLForConditionalGeneration(CausalLM):
    """The model and the head, whose weight may be the token table (then they share it, each on its own grid)."""

    model: QuantQwen3VLModel

    @property
    def text(self) -> DecoderModel:
        """The language model within the whole."""
        return self.model.language_model

    @property
    def rope_deltas(self) -> Tensor | None:
        """Of the last prompt; see QuantQwen3VLModel."""
        return self.model.rope_deltas

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        """See QuantQwen3VLModel."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def get_video_features(
        self, pixel_values_videos: Tensor, video_grid_thw: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """See QuantQwen3VLModel."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As QuantQwen3VLModel -> HF's output class with logits (B, S or as many as logits_to_keep, vocabulary), and
        loss where labels (B, S) are given: next token, -100 ignored.

        logits_to_keep: the last so many, 0 for all, or the indices of places.
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache": cache,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
            "pixel_values_videos": pixel_values_videos,
            "image_grid_thw": image_grid_thw,
            "video_grid_thw": video_grid_thw,
            "mm_token_type_ids": mm_token_type_ids,
            "mm_encoder_outputs": mm_encoder_outputs,
        }
        also = ("rope_deltas", "image_outputs", "video_outputs")
        return self.run(arguments, labels, logits_to_keep, kwargs, also)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """HF's `generate` over this tree: its arguments, its loop, its cache classes.

        mm_token_type_ids that are absent beside grids come from input_ids; HF alone would take every token for text.
        """
        ids = kwargs.get("input_ids", inputs)
        grids = [kwargs.get(name) for name in ("image_grid_thw", "video_grid_thw")]
        if ids is not None and any(grid is not None for grid in grids) and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self.model.token_types(ids)
        return super().generate(inputs, **kwargs)
