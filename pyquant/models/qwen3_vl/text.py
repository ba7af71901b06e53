# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of Qwen3-VL's text model and what it is made of.

It owns the attention with normalized, rotated queries and keys, whose cached form has sites of its own. Masks are
causal.py, rotary tables text_model.py; linear, norm, core and the gated MLP are those of pyquant.wrap.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyquant.models.qwen3_vl.causal import text_mask
from pyquant.models.qwen3_vl.hf import hf_class, refuse_recording
from pyquant.models.qwen3_vl.text_static import GraphInputs, TextAdapter, TextProfile
from pyquant.wrap.attention import AdditiveMask, AttentionCore
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.gated_mlp import QuantGatedMLP
from pyquant.wrap.norm import QuantRMSNorm
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import Rotary, RotaryTables

Mask = Tensor | AdditiveMask | None


@register(hf_class("Qwen3VLTextRMSNorm"))
class QuantQwen3VLTextRMSNorm(QuantRMSNorm):
    """The norm of hidden states, and of each head's queries and keys."""


@register(hf_class("Qwen3VLTextMLP"))
class QuantQwen3VLTextMLP(QuantGatedMLP):
    """SwiGLU."""


@register(hf_class("Qwen3VLTextAttention"))
class QuantQwen3VLTextAttention(QModule):
    """Causal attention with grouped heads, whose queries and keys are normalized and rotated.

    `key` and `value` are what a cache holds. A cached tensor has been through its site once, and stays as it is.
    """

    CHILDREN = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    SITES = {"act_in": Role.ACTIVATION, "key": Role.ACTIVATION, "value": Role.ACTIVATION}

    q_proj: QModule
    k_proj: QModule
    v_proj: QModule
    o_proj: QModule
    q_norm: QModule
    k_norm: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.head_dim = int(fp.head_dim)
        self.layer_idx = int(fp.layer_idx)
        unit = table_scale(fp.config) <= 1
        self.q_rotary = Rotary(ctx.child("q_rotary"), unit=unit)
        self.k_rotary = Rotary(ctx.child("k_rotary"), unit=unit)
        self.core = AttentionCore(ctx.child("core"), scaling=float(fp.scaling))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        past_key_values: Any = None,
        *,
        per_head: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, S, D), position_embeddings (cos, sin) each (B, S, head_dim) -> (B, S, D), probabilities.

        `past_key_values` is an HF Cache, which is updated. Further keywords are accepted as HF accepts them.
        """
        tables = RotaryTables.of(position_embeddings, parts=1)
        mask = self._mask(hidden_states, attention_mask, past_key_values)
        batch, tokens = hidden_states.shape[:2]
        heads = (batch, tokens, -1, self.head_dim)

        x = self.q("act_in", hidden_states)
        query = self.q_rotary(self.q_norm(self.q_proj(x).view(heads)), tables).transpose(1, 2)
        key = self.k_rotary(self.k_norm(self.k_proj(x).view(heads)), tables).transpose(1, 2)
        key = self.q("key", key)
        value = self.q("value", self.v_proj(x).view(heads).transpose(1, 2))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        out, probs = self.core(query, key, value, mask, per_head=per_head)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), probs

    def _mask(self, hidden: Tensor, mask: Mask, cache: Any) -> AdditiveMask | None:
        # HF's attention functions other than "eager" take no mask for a causal one, as soon as there are two queries.
        causal = getattr(self.config, "_attn_implementation", None) not in (None, "eager")
        if mask is None and causal and hidden.shape[1] > 1:
            return text_mask(None, hidden, cache)
        return AdditiveMask.of(mask, hidden.dtype)

    def as_export_module(self, profile: TextProfile) -> TextAdapter:  # type: ignore[override]
        """hidden_states (B, S, D), mask, tables, past -> attn_output (B, S, D), new_key, new_value; see TextProfile."""
        return TextAdapter(self, profile, _attention, first="hidden_states", output="attn_output", attentions=[self])


def _attention(module: Any, given: GraphInputs) -> Tensor:
    out: Tensor = module(given.hidden, given.tables, given.mask, given.past, per_head=given.per_head)[0]
    return out


@register(hf_class("Qwen3VLTextDecoderLayer"))
class QuantQwen3VLTextDecoderLayer(QModule):
    """Attention and MLP, each after a norm, each added to the residual stream."""

    CHILDREN = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    SITES = {"act_in": Role.ACTIVATION, "attn_residual": Role.ACTIVATION, "act_out": Role.ACTIVATION}

    self_attn: QuantQwen3VLTextAttention
    mlp: QModule
    input_layernorm: QModule
    post_attention_layernorm: QModule

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        *,
        per_head: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, S, D) -> (B, S, D); the other arguments as QuantQwen3VLTextAttention takes them."""
        refuse_recording(kwargs)
        x = self.q("act_in", hidden_states)
        attended, _ = self.self_attn(
            self.input_layernorm(x), position_embeddings, attention_mask, past_key_values, per_head=per_head
        )
        x = self.q("attn_residual", x + attended)
        return self.q("act_out", x + self.mlp(self.post_attention_layernorm(x)))

    def as_export_module(self, profile: TextProfile) -> TextAdapter:  # type: ignore[override]
        """hidden_states (B, S, D), mask, tables, past -> hidden_states_out, new_key, new_value; see TextProfile."""
        return TextAdapter(
            self,
            profile,
            _layer,
            first="hidden_states",
            output="hidden_states_out",
            attentions=[self.self_attn],
        )


def _layer(module: Any, given: GraphInputs) -> Tensor:
    out: Tensor = module(given.hidden, given.tables, given.mask, past_key_values=given.past, per_head=given.per_head)
    return out


def table_scale(config: Any) -> float:
    """What transformers multiplies cos and sin with: 1, or more for some long-context kinds of rotary embedding."""
    return float(hf_class("Qwen3VLTextRotaryEmbedding")(config).attention_scaling)
