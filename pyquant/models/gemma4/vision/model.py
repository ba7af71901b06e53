# SPDX-License-Identifier: Apache-2.0
"""Gemma4's vision encoder and the whole vision tower.

It owns the order of things, HF's calling convention, and the standardization at the end. Layers are layers.py, the two
ends patches.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class
from pyquant.models.gemma4.vision.adapter import static_graph
from pyquant.models.gemma4.vision.images import image_by_image
from pyquant.models.gemma4.vision.layers import Mask
from pyquant.models.gemma4.vision.patches import QuantGemma4VisionPatchEmbedder, QuantGemma4VisionPooler
from pyquant.models.gemma4.vision.profiles import VisionProfile, require_vision_profile
from pyquant.models.gemma4.vision.tables import StaticTables, VisionTables, padding_of
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32, float_parameter
from pyquant.wrap.hf_model import QModel
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import RotaryTables


@register(hf_class("Gemma4VisionEncoder"))
class QuantGemma4VisionEncoder(QModule):
    """The stack of layers. Has no site of its own."""

    CHILDREN = ("layers",)
    OUTPUT = BaseModelOutputWithPast
    BLOCKS = "layers"

    layers: nn.ModuleList

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.rotary_emb = copy.deepcopy(fp.rotary_emb)  # HF's own; it has no parameters, and `.to` must not move fp's

    def rotary(self, like: Tensor, pixel_position_ids: Tensor) -> RotaryTables:
        """The tables for positions (B, P, 2), in dtype and on the device of `like`."""
        return RotaryTables.of(self.rotary_emb(like, pixel_position_ids), parts=2)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Mask = None,
        pixel_position_ids: Tensor | None = None,
        *,
        position_embeddings: RotaryTables | None = None,
        **kwargs: Any,
    ) -> Any:
        """inputs_embeds (B, P, V) -> last_hidden_state (B, P, V).

        attention_mask is (B, P), true where a patch is real, or 4-D. Positions (B, P, 2), or the tables `rotary` made.
        """
        hf.refuse_recording(kwargs)
        if position_embeddings is None:
            if pixel_position_ids is None:
                raise InputError("the vision encoder needs pixel_position_ids (batch, patches, 2)")
            position_embeddings = self.rotary(inputs_embeds, pixel_position_ids)
        mask = AdditiveMask.of(attention_mask, inputs_embeds.dtype, keep=self.state.explicit)
        if self.state.collects and mask is not None and mask.values.shape[1:3] == (1, 1):
            hidden = image_by_image(self._through, inputs_embeds, position_embeddings, mask)
        else:
            hidden = self._through(inputs_embeds, position_embeddings, mask)
        return hf.make_output(self.output_type, last_hidden_state=hidden)

    def _through(self, hidden: Tensor, tables: RotaryTables, mask: AdditiveMask | None) -> Tensor:
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden = self.run_block(layer, _layer, hidden, tables, mask)
        return hidden

    def static_tables(self, profile: VisionProfile) -> tuple[RotaryTables, AdditiveMask | None]:
        """Rotary tables and mask of a profile."""
        weight = float_parameter(self)
        ids = profile.positions.to(weight.device)
        return self.rotary(weight, ids), AdditiveMask.of(~padding_of(ids), weight.dtype)

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """inputs_embeds (B, P, V) -> last_hidden_state (B, P, V), with the positions and the padding of `profile`."""
        require_vision_profile(profile, self)
        rotary, mask = self.static_tables(profile)
        spec = TensorSpec((*profile.shape, self.config.hidden_size), float_parameter(self).dtype)
        return static_graph(
            self,
            StaticTables(rotary=rotary, mask=mask),
            _encoder_arguments,
            inputs={"inputs_embeds": spec},
            output="last_hidden_state",
            name="gemma4_vision_encoder",
        )


def _layer(layer: nn.Module, hidden: Tensor, tables: RotaryTables, mask: AdditiveMask | None) -> Tensor:
    out: Tensor = layer(hidden, tables, mask)
    return out


def _encoder_arguments(tables: StaticTables) -> dict[str, Any]:
    return {"position_embeddings": tables.rotary, "attention_mask": tables.mask}


@register(hf_class("Gemma4VisionModel"))
class QuantGemma4VisionModel(QModel):
    """Patches of images -> soft tokens of all images in a row, padding stripped."""

    CHILDREN = ("patch_embedder", "encoder", "pooler")
    OUTPUT = BaseModelOutputWithPooling

    patch_embedder: QuantGemma4VisionPatchEmbedder
    encoder: QuantGemma4VisionEncoder
    pooler: QuantGemma4VisionPooler
    std_bias: Tensor
    std_scale: Tensor

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.standardize = bool(fp.config.standardize)
        if self.standardize:
            self.register_buffer("std_bias", fp.std_bias)
            self.register_buffer("std_scale", fp.std_scale)
            self.add_site("std_bias", Role.CONSTANT)
            self.add_site("centered", Role.ACTIVATION)
            self.add_site("std_scale", Role.CONSTANT)
            self.add_site("act_out", Role.ACTIVATION)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_position_ids: Tensor | None = None,
        *,
        tables: VisionTables | None = None,
        **kwargs: Any,
    ) -> Any:
        """pixel_values (B, P, 3 * patch**2) in [0, 1], pixel_position_ids (B, P, 2), (-1, -1) for padding
        -> last_hidden_state (real tokens of all images, V).

        Any batch, positions and padding that HF accepts. `tables` replaces positions that are fixed.
        """
        hf.refuse_recording(kwargs, self.config)
        if tables is None:
            tables = self.tables(pixel_values, pixel_position_ids)
            pixel_values = self.patch_embedder.worth_observing(pixel_values, pixel_position_ids)
        hidden = self.patch_embedder(pixel_values, position_embeddings=tables.position_embeddings)
        dtype = hidden.dtype
        hidden = self.encoder(hidden, tables.mask, position_embeddings=tables.rotary).last_hidden_state
        hidden = tables.pooling.strip(self.pooler(hidden, pooling=tables.pooling)[0])
        if self.standardize:
            hidden = self.q("centered", hidden - as_float32(self.const("std_bias", self.std_bias)))
            hidden = self.q("act_out", hidden * as_float32(self.const("std_scale", self.std_scale)))
        out = hf.make_output(self.output_type, last_hidden_state=as_dtype(hidden, dtype))
        return hf.as_called(out, kwargs, self.config)

    def tables(self, pixel_values: Tensor, pixel_position_ids: Tensor | None) -> VisionTables:
        """What the positions of one batch mean. Raises InputError when they do not fit the pixels or the model."""
        ids = pixel_position_ids
        if pixel_values.dim() != 3 or ids is None or ids.shape != (*pixel_values.shape[:2], 2):
            raise InputError(
                "the vision model takes pixel_values (batch, patches, pixels) and pixel_position_ids (batch, patches, "
                f"2); got {tuple(pixel_values.shape)} and {None if ids is None else tuple(ids.shape)}"
            )
        padding = padding_of(ids)
        embeddings = self.patch_embedder.embeddings(ids, padding)
        return VisionTables(
            embeddings,
            self.encoder.rotary(embeddings, ids),
            AdditiveMask.of(~padding, embeddings.dtype),
            self.pooler.pooling(ids, padding, ids.shape[1] // self.config.pooling_kernel_size**2),
        )

    @torch.no_grad()
    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """pixel_values (B, P, 3 * patch**2) -> soft_tokens (real tokens of all images, V), for one `profile`.

        Raises ProfileError when the profile contradicts the model: pools, position table.
        """
        require_vision_profile(profile, self)
        pooling = self.pooler.static_pooling(profile, self.config.pooling_kernel_size)
        rotary, mask = self.encoder.static_tables(profile)
        tables = StaticTables(
            position_embeddings=self.patch_embedder.static_embeddings(profile),
            rotary=rotary,
            mask=mask,
            pooling=pooling,
        )
        return static_graph(
            self,
            tables,
            _model_arguments,
            inputs={"pixel_values": self.patch_embedder.pixel_spec(profile)},
            output="soft_tokens",
            name="gemma4_vision_model",
        )


def _model_arguments(tables: StaticTables) -> dict[str, Any]:
    return {"tables": tables.vision()}
