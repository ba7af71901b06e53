# SPDX-License-Identifier: Apache-2.0
"""One encoder layer of Gemma4's vision tower and what it is made of.

It owns sandwich norms and axially rotated attention. Masks and rotary tables come from tables.py; clipped linears and
the norm are those of all of Gemma4; softmax and the gated MLP are those of pyquant.wrap.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class
from pyquant.models.gemma4.vision.adapter import static_graph
from pyquant.models.gemma4.vision.profiles import VisionProfile, require_vision_profile
from pyquant.models.gemma4.vision.tables import StaticTables, padding_of
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask, AttentionCore
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import float_parameter
from pyquant.wrap.gated_mlp import QuantGatedMLP
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import Rotary, RotaryTables

Mask = Tensor | AdditiveMask | None


@register(hf_class("Gemma4VisionMLP"))
class QuantGemma4VisionMLP(QuantGatedMLP):
    """GeGLU over three clipped linears."""


@register(hf_class("Gemma4VisionAttention"))
class QuantGemma4VisionAttention(QModule):
    """Bidirectional attention with normalized queries, keys and values, rotated by x and y apart."""

    CHILDREN = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "v_norm")
    SITES = {"act_in": Role.ACTIVATION}

    q_proj: QModule
    k_proj: QModule
    v_proj: QModule
    o_proj: QModule
    q_norm: QModule
    k_norm: QModule
    v_norm: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.head_dim = int(fp.head_dim)
        self.q_rotary = Rotary(ctx.child("q_rotary"), parts=2)
        self.k_rotary = Rotary(ctx.child("k_rotary"), parts=2)
        self.core = AttentionCore(ctx.child("core"), scaling=float(fp.scaling))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, P, V), position_embeddings (cos, sin) each (B, P, head_dim) -> (B, P, V), probabilities.

        `position_ids` and further keywords are accepted as HF accepts them, and not needed.
        """
        tables = RotaryTables.of(position_embeddings, parts=2)
        mask = AdditiveMask.of(attention_mask, hidden_states.dtype, keep=self.state.explicit)
        batch, patches = hidden_states.shape[:2]
        heads = (batch, patches, -1, self.head_dim)

        x = self.q("act_in", hidden_states)
        query = self.q_rotary(self.q_norm(self.q_proj(x).view(heads)), tables).transpose(1, 2)
        key = self.k_rotary(self.k_norm(self.k_proj(x).view(heads)), tables).transpose(1, 2)
        value = self.v_norm(self.v_proj(x).view(heads)).transpose(1, 2)
        out, probs = self.core(query, key, value, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, patches, -1)), probs

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """hidden_states (B, P, V) -> attn_output (B, P, V), with the positions and the padding of `profile`."""
        return _adapter(self, profile, "gemma4_vision_attention")


@register(hf_class("Gemma4VisionEncoderLayer"))
class QuantGemma4VisionEncoderLayer(QModule):
    """Attention and MLP, each between two norms, each added to the residual stream."""

    CHILDREN = (
        "self_attn",
        "mlp",
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
    SITES = {"act_in": Role.ACTIVATION, "attn_residual": Role.ACTIVATION, "act_out": Role.ACTIVATION}

    self_attn: QModule
    mlp: QModule
    input_layernorm: QModule
    post_attention_layernorm: QModule
    pre_feedforward_layernorm: QModule
    post_feedforward_layernorm: QModule

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, P, V) -> (B, P, V); the other arguments as QuantGemma4VisionAttention takes them."""
        x = self.q("act_in", hidden_states)
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        x = self.q("attn_residual", x + self.post_attention_layernorm(attended))
        fed = self.mlp(self.pre_feedforward_layernorm(x))
        return self.q("act_out", x + self.post_feedforward_layernorm(fed))

    def as_export_module(self, profile: VisionProfile) -> GraphAdapter:
        """hidden_states (B, P, V) -> hidden_states_out (B, P, V), with the positions and the padding of `profile`."""
        return _adapter(self, profile, "gemma4_vision_encoder_layer")


def _adapter(module: QModule, profile: VisionProfile, name: str) -> GraphAdapter:
    """A layer or its attention alone: the rotary tables come from HF's rotary module, built from the layer's config."""
    require_vision_profile(profile, module)
    weight = float_parameter(module)
    rotary = hf_class("Gemma4VisionRotaryEmbedding")(module.config).to(weight.device)
    ids = profile.positions.to(weight.device)
    tables = StaticTables(
        rotary=RotaryTables.of(rotary(weight, ids), parts=2), mask=AdditiveMask.of(~padding_of(ids), weight.dtype)
    )
    spec = TensorSpec((*profile.shape, module.config.hidden_size), weight.dtype)
    return static_graph(
        module, tables, _arguments, inputs={"hidden_states": spec}, output="hidden_states_out", name=name
    )


def _arguments(tables: StaticTables) -> dict[str, Any]:
    return {"position_embeddings": tables.rotary, "attention_mask": tables.mask}
