# SPDX-License-Identifier: Apache-2.0
"""Gemma4 without its head: vision and audio tower, text model, and the join of their tokens, as HF calls them.

It owns what HF's forward does between the towers and the text model. Places are places.py, static graphs graphs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.decoder.inputs import given_of
from pyquant.decoder.multimodal import MultimodalModel, whole_rows
from pyquant.errors import InputError, ProfileError
from pyquant.models.gemma4.embedder import QuantGemma4MultimodalEmbedder
from pyquant.models.gemma4.graphs import FusionProfile, SoftTokensProfile, fusion_graph, soft_tokens_graph
from pyquant.models.gemma4.hf import hf_class, home
from pyquant.models.gemma4.images import frames_of
from pyquant.models.gemma4.places import AUDIO, IMAGE, TEXT, TOKENS, VIDEO, Counts, place_index, types_of
from pyquant.models.gemma4.text.model import QuantGemma4TextModel
from pyquant.models.gemma4.vision.model import QuantGemma4VisionModel
from pyquant.models.gemma4.whole import WholeProfile, whole_graph
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, WrapContext
from pyquant.wrap.registry import register


@register(hf_class("Gemma4Model"))
class QuantGemma4Model(MultimodalModel):
    """Towers and text model; rows of images, videos and audio replace the placeholders of the prompt."""

    CHILDREN = ("vision_tower", "language_model", "audio_tower", "embed_vision", "embed_audio")
    OUTPUT = BaseModelOutputWithPast
    OPTIONAL = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    WRITES_TO = {
        "language_model": ("embed_vision.embedding_projection", "embed_audio.embedding_projection"),
    }
    vision_tower: QuantGemma4VisionModel | None
    language_model: QuantGemma4TextModel
    audio_tower: QModule | None
    embed_vision: QuantGemma4MultimodalEmbedder | None
    embed_audio: QuantGemma4MultimodalEmbedder | None

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.tokens = {kind: getattr(self.config, name, None) for kind, name in TOKENS.items()}
        self.pad = int(self.config.text_config.pad_token_id or 0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor | None] | None = None,
        input_features_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        mm_token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        image_position_ids: Tensor | None = None,
        video_position_ids: Tensor | None = None,
        num_frames_per_video: Tensor | None = None,
        per_layer_inputs: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids (B, S) or inputs_embeds (B, S, D) -> HF's output class: last_hidden_state (B, S, D) and the cache.

        pixel_values (images, P, 3 * patch**2) with image_position_ids (images, P, 2), (-1, -1) for padding; the same of
        the frames of videos; input_features (clips, frames, mel) with input_features_mask (clips, frames). Placeholders
        are found by input_ids, or by the rows that they have in inputs_embeds. mm_token_type_ids (B, S) matter to a
        model whose images see themselves (use_bidirectional_attention="vision").

        While calibrating, padding that a 2-D mask names is not observed. Raises InputError for inputs that contradict
        each other; while calibrating, also for placeholders without images or audio, which HF runs as padding tokens.
        """
        hf.refuse_recording(kwargs)
        cache = hf.take_cache(cache, kwargs)
        given = given_of(input_ids, inputs_embeds)
        if input_ids is not None and per_layer_inputs is not None:
            raise InputError(
                "per_layer_inputs go with inputs_embeds; with input_ids they are looked up, leave them out"
            )
        outputs = dict(mm_encoder_outputs or {})
        if outputs and (pixel_values is not None or pixel_values_videos is not None):
            raise InputError("give pixel_values or mm_encoder_outputs, which are made of them, and not both")
        types = self.places(given)
        rows, counts, audio = self._rows(
            outputs,
            (pixel_values, image_position_ids),
            (pixel_values_videos, video_position_ids, num_frames_per_video),
            (input_features, input_features_mask),
        )
        if self.observes and not rows:
            self._require_rows(types)
        index = place_index(_only(types, counts), counts) if rows else None
        ids = None if given.is_floating_point() else given.masked_fill(types != TEXT, self.pad)
        hidden = self.fused(given if ids is None else ids, rows, index, attention_mask, cache)
        as_object = kwargs.pop("return_dict", None)
        kwargs.pop("labels", None)
        out = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=hidden,
            per_layer_inputs=per_layer_inputs,
            use_cache=use_cache,
            per_layer_ids=self._per_layer_ids(given, ids, types, per_layer_inputs),
            mm_token_type_ids=mm_token_type_ids,
            return_dict=True,
            **kwargs,
        )
        image = outputs.get("image")
        out = hf.make_output(
            self.output_type,
            last_hidden_state=out.last_hidden_state,
            cache=hf.cache_of(out),
            image_outputs=image,
            image_hidden_states=None if image is None else whole_rows(image.pooler_output),
            audio_hidden_states=audio,
        )
        return hf.as_called(out, {"return_dict": as_object}, self.config)

    # --- what HF's callers use ---

    def get_image_features(self, pixel_values: Tensor, image_position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The vision tower's output with pooler_output: rows (n, D) of all images, in releases that split them one
        tensor for each image. Raises InputError without a vision tower."""
        tower, embedder = self._vision()
        kwargs["return_dict"] = True
        out = tower(pixel_values, image_position_ids, **kwargs)
        rows = embedder(out.last_hidden_state)
        out.pooler_output = rows if not _splits() else torch.split(rows, self._soft_tokens(image_position_ids))
        return out

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        video_position_ids: Tensor | None = None,
        num_frames_per_video: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As get_image_features, of the frames of videos: (frames of all videos, P, 3 * patch**2), or in releases
        before 5.19 (videos, frames, P, ...). pooler_output has one tensor for each video where images have one each."""
        pixels, positions, frames = frames_of(pixel_values_videos, video_position_ids, num_frames_per_video)
        if frames is None:
            raise InputError(
                "videos need num_frames_per_video (videos,): the frames of all of them stand in one row; the video "
                "processor returns it"
            )
        out = self.get_image_features(pixels, positions, **kwargs)
        if _splits():
            parts, start, videos = out.pooler_output, 0, []
            for count in frames:
                videos.append(torch.cat(list(parts[start : start + count])))
                start += count
            out.pooler_output = tuple(videos)
        return out

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor, **kwargs: Any) -> Any:
        """The audio tower's output with pooler_output (clips, tokens, D). Raises InputError without an audio tower."""
        tower, embedder = self._audio()
        kwargs["return_dict"] = True
        out = tower(input_features, input_features_mask, **kwargs)
        out.pooler_output = embedder(out.last_hidden_state)
        return out

    def get_placeholder_mask(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The places of images, videos and audio, bool (B, S) each."""
        types = self.places(given_of(input_ids, None if input_ids is not None else inputs_embeds))
        return types == IMAGE, types == VIDEO, types == AUDIO

    # --- the steps of forward ---

    def places(self, given: Tensor) -> Tensor:
        """The kind of each place (places.py), of ids (B, S); or of embeddings (B, S, D) by the placeholders' rows of
        the table, quantized or not."""
        if not given.is_floating_point():
            return types_of(given, self.tokens)
        return self.kinds_of_embeds(given, self.tokens)

    def _rows(
        self,
        outputs: dict[str, Any],
        images: tuple[Tensor | None, Tensor | None],
        videos: tuple[Tensor | None, Tensor | None, Tensor | None],
        clips: tuple[Tensor | None, Tensor | None],
    ) -> tuple[list[Tensor], Counts, Tensor | None]:
        """Rows (n, D) of each kind that is there, how many there are, and those of audio. No image, frame or clip in a
        tensor is as no tensor."""
        if images[0] is not None and len(images[0]):
            outputs["image"] = self.get_image_features(images[0], images[1])
        if videos[0] is not None and len(videos[0]):
            outputs["video"] = self.get_video_features(videos[0], videos[1], videos[2])
        made = {
            name: whole_rows(outputs[name].pooler_output)
            for name in ("image", "video")
            if outputs.get(name) is not None
        }
        audio = None
        if clips[0] is not None and clips[1] is not None and len(clips[0]):  # as HF, which needs both
            tower, embedder = self._audio()
            out = tower(clips[0], clips[1], return_dict=True)
            soft = out.last_hidden_state  # without padding, which is not to be learned from
            audio = made["audio"] = embedder(soft[out.attention_mask.to(soft.device) != 0])
        counts = Counts(*(len(made[name]) if name in made else 0 for name in ("image", "video", "audio")))
        return list(made.values()), counts, audio

    def _vision(self) -> tuple[QuantGemma4VisionModel, QuantGemma4MultimodalEmbedder]:
        if self.vision_tower is None or self.embed_vision is None:
            raise InputError("images are given, and the model has no vision tower (its vision_config is None)")
        return self.vision_tower, self.embed_vision

    def _audio(self) -> tuple[QModule, QuantGemma4MultimodalEmbedder]:
        if self.audio_tower is None or self.embed_audio is None:
            raise InputError("input_features are given, and the model has no audio tower (its audio_config is None)")
        return self.audio_tower, self.embed_audio

    def _soft_tokens(self, position_ids: Tensor | None) -> list[int]:
        """How many rows each image has."""
        assert position_ids is not None, "the vision tower refuses images without positions"
        kernel = int(self.config.vision_config.pooling_kernel_size)
        patches: list[int] = (position_ids != -1).all(dim=-1).sum(dim=-1).tolist()
        return [count // kernel**2 for count in patches]

    def _require_rows(self, types: Tensor) -> None:
        """Raise InputError for placeholders without rows: padding rows there, which no device reads, would be learned
        from."""
        if count := int((types != TEXT).sum()):
            raise InputError(
                f"the prompt has {count} image, video or audio placeholder tokens and nothing to put there; a "
                "calibration batch needs pixel_values with image_position_ids (videos: pixel_values_videos with "
                "video_position_ids; audio: input_features with input_features_mask), or a prompt of text alone"
            )

    def _per_layer_ids(
        self, given: Tensor, ids: Tensor | None, types: Tensor, per_layer_inputs: Tensor | None
    ) -> Tensor | None:
        """What the per-layer table is asked for: the padding token where rows of towers stand."""
        if per_layer_inputs is not None or not self.language_model.per_layer_width:
            return None
        return self.language_model.ids_of(given, types != TEXT, self.pad) if ids is None else ids

    # --- static graphs ---

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """The join (FusionProfile), a tower and its embedder (SoftTokensProfile), or all of the model (WholeProfile).
        The others belong to its parts."""
        if isinstance(profile, FusionProfile):
            return fusion_graph(self, profile)
        if isinstance(profile, SoftTokensProfile):
            return soft_tokens_graph(self, profile)
        if isinstance(profile, WholeProfile):
            return whole_graph(self, profile)
        raise ProfileError(
            f"{type(self).__name__} is exported graph by graph: pyquant.export_bundle(q, folder, gemma4.Profile(...)), "
            f"or its parts, or one of FusionProfile, SoftTokensProfile and WholeProfile; got {type(profile).__name__}"
        )


def _only(types: Tensor, counts: Counts) -> Tensor:
    """Places of kinds that came with the call; HF leaves the padding token at those of others."""
    absent = [kind for kind, count in zip((IMAGE, VIDEO, AUDIO), counts, strict=True) if not count]
    for kind in absent:
        types = torch.where(types == kind, TEXT, types)
    return types


def _splits() -> bool:
    """Releases that take a tower's output back (mm_encoder_outputs) have it split by image."""
    return home.takes("Gemma4Model", "mm_encoder_outputs")
