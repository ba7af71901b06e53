# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL with its head: logits, loss, and generate() by HF's own loop over the quantized tree.

It owns the head and the way into HF's generation. All before the head is model.py, a bundle's loop is host.py.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from pyquant.errors import ProfileError
from pyquant.models.qwen3_vl.adapters import GraphAdapter, HeadProfile, head_graph
from pyquant.models.qwen3_vl.hf import hf_class, hf_find
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.wrap.base import QModule, WrapContext
from pyquant.wrap.registry import register


@register(hf_class("Qwen3VLForConditionalGeneration"))
class QuantQwen3VLForConditionalGeneration(QModule):
    """The model and the head, whose weight may be the token table (then they share it, each on its own grid)."""

    CHILDREN = ("model", "lm_head")

    model: QuantQwen3VLModel
    lm_head: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.generation_config = copy.deepcopy(getattr(fp, "generation_config", None))

    @property
    def rope_deltas(self) -> Tensor | None:
        """Of the last prompt; see QuantQwen3VLModel."""
        return self.model.rope_deltas

    def get_input_embeddings(self) -> QModule:
        """The text model's table."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> QModule:
        """The head."""
        return self.lm_head

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
        past_key_values: Any = None,
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
        as_object = kwargs.pop("return_dict", None)
        num_items = {key: kwargs.pop(key) for key in ("num_items_in_batch", "shift_labels") if key in kwargs}
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = out.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden if isinstance(kept, slice) and kept.start == 0 else hidden[:, kept])
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.hf_shell().loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **num_items)
        fields = {"loss": loss, "logits": logits, "past_key_values": out.past_key_values}
        cls: Any = hf_find("Qwen3VLCausalLMOutputWithPast")
        result = CausalLMOutputWithPast(**fields) if cls is None else cls(**fields, rope_deltas=out.rope_deltas)
        return result.to_tuple() if as_object is False else result

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """HF's `generate` over this tree: its arguments, its loop, its cache classes.

        mm_token_type_ids that are absent beside grids come from input_ids; HF alone would take every token for text.
        """
        ids = kwargs.get("input_ids", inputs)
        grids = [kwargs.get(name) for name in ("image_grid_thw", "video_grid_thw")]
        if ids is not None and any(grid is not None for grid in grids) and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self.model._types(ids)
        return self.hf_shell().generate(inputs, **kwargs)

    def hf_shell(self) -> Any:
        """An object of the float model's class without weights of its own, whose forward is this tree's."""
        fp_type: Any = self.fp_type
        shell = _shell_class(fp_type)
        me: Any = object.__new__(shell)
        nn.Module.__init__(me)
        me.config = self.config
        me.generation_config = copy.deepcopy(self.generation_config)
        me.model, me.lm_head, me.tree = self.model, self.lm_head, [self]
        me.training = False
        return me

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """The final norm and the head (HeadProfile). The other graphs belong to its parts."""
        if isinstance(profile, HeadProfile):
            return head_graph(self, profile)
        raise ProfileError(
            f"{type(self).__name__} is exported graph by graph: pyquant.export_bundle(q, folder, "
            f"qwen3_vl.Profile(...)), or its parts, or its head with HeadProfile; got {type(profile).__name__}"
        )


@functools.cache
def _shell_class(fp_type: type[Any]) -> type[Any]:
    @functools.wraps(fp_type.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.tree[0](*args, **kwargs)

    return type(fp_type.__name__, (fp_type,), {"forward": forward, "__module__": __name__})
