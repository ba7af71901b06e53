# SPDX-License-Identifier: Apache-2.0
"""The whole of Gemma4: head, logits, loss, and generate() by HF's own loop over the quantized tree.

It owns HF's calling convention. The soft-cap is text/model.py's, what comes before the head model.py's, a bundle's loop
host.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyquant.models.gemma4.hf import hf_class
from pyquant.models.gemma4.model import QuantGemma4Model
from pyquant.models.gemma4.text.model import CappedCausalLM, QuantGemma4TextModel
from pyquant.wrap.registry import register


@register(hf_class("Gemma4ForConditionalGeneration"))
class QuantGemma4ForConditionalGeneration(CappedCausalLM):
    """The model with towers and its head, whose weight may be the token table (then they share it, each on its own
    grid)."""

    model: QuantGemma4Model

    @property
    def text(self) -> QuantGemma4TextModel:
        return self.model.language_model

    def get_image_features(self, pixel_values: Tensor, image_position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """See QuantGemma4Model."""
        return self.model.get_image_features(pixel_values, image_position_ids, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor | None] | None = None,
        input_features_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        video_position_ids: Tensor | None = None,
        num_frames_per_video: Tensor | None = None,
        cache: Any = None,
        mm_token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        per_layer_inputs: Tensor | None = None,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As QuantGemma4Model -> HF's output class with logits (B, S or as many as logits_to_keep, vocabulary), and
        loss where labels (B, S) are given: next token, -100 ignored.

        logits_to_keep: the last so many, 0 for all, or the indices of places.
        """
        arguments = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "pixel_values_videos": pixel_values_videos,
            "input_features": input_features,
            "attention_mask": attention_mask,
            "input_features_mask": input_features_mask,
            "position_ids": position_ids,
            "image_position_ids": image_position_ids,
            "video_position_ids": video_position_ids,
            "num_frames_per_video": num_frames_per_video,
            "cache": cache,
            "mm_token_type_ids": mm_token_type_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "per_layer_inputs": per_layer_inputs,
            "mm_encoder_outputs": mm_encoder_outputs,
        }
        also = ("image_outputs", "image_hidden_states", "audio_hidden_states")
        return self.run(arguments, labels, logits_to_keep, kwargs, also)
