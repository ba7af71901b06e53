# SPDX-License-Identifier: Apache-2.0
"""One decoder layer: causal attention with grouped heads and a KV cache, a gated MLP, a norm before each.

It owns the sites of cached keys and values, and both as static graphs. Masks are masks.py, rotary tables model.py;
linear, norm, attention core and MLP are those of pyquant.wrap. A family derives from these and names its HF classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyquant.decoder.graphs import StackInputs, TextProfile, text_graph
from pyquant.decoder.kind import LayerKind
from pyquant.decoder.masks import text_mask
from pyquant.decoder.past import KeyValue, Past
from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask, AttentionCore
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.rotary import Rotary, RotaryTables

Mask = Tensor | AdditiveMask | None


class DecoderAttention(QModule):
    """Causal attention with grouped heads, whose queries and keys are rotated, and normalized where HF has the norms.

    `key` and `value` are cached. A cached tensor has been through its site once, and stays as it is. A
    layer that reads another layer's keys (`LayerKind.shares`) has the two sites too, and no projections for them.
    """

    CHILDREN: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("k_proj", "v_proj", "q_norm", "k_norm")
    SITES = {"act_in": Role.ACTIVATION, "key": Role.ACTIVATION, "value": Role.ACTIVATION}
    UNTRACED: ClassVar[tuple[str, ...]] = ("layer_idx",)  # a place in the cache
    SHARED = (("q_proj", "k_proj", "v_proj"),)
    PAIRS: ClassVar[tuple[tuple[str, str], ...]] = (("v_proj", "o_proj"),)
    ROTARY: ClassVar[type[Any]]  # HF's rotary embedding of the family, built from the config

    q_proj: QModule
    k_proj: QModule | None
    v_proj: QModule | None
    o_proj: QModule
    q_norm: QModule | None
    k_norm: QModule | None

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.kind = self.layer_kind(fp)
        self.layer_idx = int(fp.layer_idx)
        unit = self.rotary_scaling(fp) <= 1  # YaRN scales cos and sin beyond 1
        self.q_rotary = Rotary(ctx.child("q_rotary"), unit=unit)
        if self.kind.shares is None:
            self.k_rotary = Rotary(ctx.child("k_rotary"), unit=unit)
        self.core = AttentionCore(ctx.child("core"), scaling=float(fp.scaling))

    @classmethod
    def layer_kind(cls, fp: Any) -> LayerKind:
        """What is particular to this layer; a family with unequal layers overrides it."""
        return LayerKind(kv_heads=int(fp.config.num_key_value_heads), head_dim=int(fp.head_dim))

    @classmethod
    def rotary_scaling(cls, fp: Any) -> float:
        """The factor of the cosines and sines that this layer gets."""
        return float(cls.ROTARY(fp.config).attention_scaling)

    @property
    def head_dim(self) -> int:
        return self.kind.head_dim

    def pair_rows(self, producer: str, consumer: str) -> tuple[Tensor | None, int | None]:
        """A head of values serves a group of queries' heads, whose outputs are side by side in what o_proj reads."""
        size, width = self.kind.head_dim, int(self.o_proj.get_parameter("weight").shape[1])
        column = torch.arange(width, dtype=torch.int64, device="cpu")
        group = width // size // self.kind.kv_heads
        return column // size // group * size + column % size, size

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        cache: Any = None,
        *,
        shared: dict[int, KeyValue] | None = None,
        per_head: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, S, D), position_embeddings (cos, sin) each (B, S, head_dim) -> (B, S, D), probabilities.

        `cache` is an HF Cache, which is updated; `past_key_values` is its older name. `shared`: layer -> all keys and
        values, of layers that others read; a layer with keys of its own adds them, one without finds them there.
        Further keywords are accepted as HF accepts them.
        """
        cache = hf.take_cache(cache, kwargs)
        tables = RotaryTables.of(position_embeddings, parts=1)
        mask = self._mask(hidden_states, attention_mask, cache)
        batch, tokens = hidden_states.shape[:2]

        x = self.q("act_in", hidden_states)
        query = self.normed(self.q_norm, self.heads(self.q_proj(x)))
        query = self.q_rotary(query, tables).transpose(1, 2)
        if self.kind.shares is None:
            key, value = self.keys(x, tables)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
            if shared is not None:
                shared[self.layer_idx] = (key, value)
        else:
            if shared is None or self.kind.shares not in shared:
                raise InputError(
                    f"{self.path!r} has no keys of its own: it reads those of layer {self.kind.shares}, which were not "
                    "given; call the whole model, or give the keys and values that the other layer left"
                )
            key, value = shared[self.kind.shares]
            key, value = self.q("key", key), self.q("value", value)
        out, probs = self.core(query, key, value, mask, per_head=per_head)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), probs

    def keys(self, x: Tensor, tables: RotaryTables) -> KeyValue:
        """New keys and values (B, Hkv, S, head_dim), on the grid of the cache."""
        assert self.k_proj is not None, f"{self.path!r} has no k_proj"
        assert self.v_proj is not None, f"{self.path!r} has no v_proj"
        key = self.k_rotary(self.normed(self.k_norm, self.heads(self.k_proj(x))), tables).transpose(1, 2)
        key = self.q("key", key)
        return key, self.q("value", self.heads(self.v_proj(x)).transpose(1, 2))

    def on_cache_grid(self, key: Tensor, value: Tensor) -> KeyValue:
        """Cached keys and values through the very sites of the new ones, which changes nothing in them."""
        return self.q("key", key), self.q("value", value)

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, heads * head_dim) -> (B, S, heads, head_dim)."""
        return x.view(*x.shape[:2], -1, self.kind.head_dim)

    @staticmethod
    def normed(norm: QModule | None, x: Tensor) -> Tensor:
        """`x` through the norm, where HF has one."""
        out: Tensor = x if norm is None else norm(x)
        return out

    def _mask(self, hidden: Tensor, mask: Mask, cache: Any) -> AdditiveMask | None:
        # HF's attention functions other than "eager" take no mask for a causal one, as soon as there are two queries.
        causal = getattr(self.config, "_attn_implementation", None) not in (None, "eager")
        if mask is None and causal and hidden.shape[1] > 1:
            return text_mask(None, hidden, cache, window=self.kind.window, layer=self.layer_idx)
        return AdditiveMask.of(mask, hidden.dtype, keep=self.state.explicit)

    def as_export_module(self, profile: TextProfile) -> GraphAdapter:
        """hidden_states (B, S, D), mask, tables, past -> attn_output (B, S, D), new_key, new_value; see TextProfile."""
        return text_graph(self, profile, _attention, first="hidden_states", output="attn_output", attentions=[self])


def _attention(module: DecoderAttention, given: StackInputs) -> Tensor:
    tables, mask = given.of(module.kind)
    out: Tensor = module(
        given.hidden,
        position_embeddings=tables,
        attention_mask=mask,
        cache=given.past,
        shared=given.shared,
        per_head=given.per_head,
    )[0]
    return out


class DecoderLayer(QModule):
    """Attention and MLP, each after a norm, each added to the residual stream."""

    CHILDREN: ClassVar[tuple[str, ...]] = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    SITES = {"act_in": Role.ACTIVATION, "attn_residual": Role.ACTIVATION, "act_out": Role.ACTIVATION}
    FEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    READS: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    WRITES: ClassVar[tuple[str, ...]] = ("self_attn.o_proj", "mlp.down_proj")

    self_attn: DecoderAttention
    mlp: QModule
    input_layernorm: QModule
    post_attention_layernorm: QModule

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = False,
        *,
        shared: dict[int, KeyValue] | None = None,
        per_head: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, S, D) -> (B, S, D); the other arguments as DecoderAttention takes them."""
        hf.refuse_recording(kwargs)
        cache = hf.take_cache(cache, kwargs)
        x = self.q("act_in", hidden_states)
        attended, _ = self.self_attn(
            self.input_layernorm(x),
            position_embeddings,
            attention_mask,
            cache,
            shared=shared,
            per_head=per_head,
        )
        x = self.q("attn_residual", x + attended)
        return self.q("act_out", x + self.mlp(self.post_attention_layernorm(x)))

    def extra_inputs(self, profile: TextProfile) -> Mapping[str, TensorSpec]:
        """What the family adds to the inputs of the graph of this layer alone."""
        return {}

    def arguments(self, given: StackInputs) -> Mapping[str, Any]:
        """Further arguments of forward, from what `extra_inputs` names."""
        return {}

    def as_export_module(self, profile: TextProfile) -> GraphAdapter:
        """hidden_states (B, S, D), mask, tables, past -> hidden_states_out, new_key, new_value; see TextProfile."""
        return text_graph(
            self,
            profile,
            _layer,
            first="hidden_states",
            output="hidden_states_out",
            attentions=[self.self_attn],
            extras=self.extra_inputs(profile),
        )


def call_layer(
    layer: DecoderLayer,
    hidden: Tensor,
    tables: RotaryTables,
    mask: AdditiveMask,
    cached: KeyValue | tuple[()] | None,
    other: KeyValue | tuple[()] | None,
    per_head: bool,
    arguments: Mapping[str, Any],
) -> tuple[Tensor, KeyValue | None, KeyValue | None]:
    """A layer that is given all that it reads: hidden states, what it adds to the cache, all its keys and values.

    cached: its keys and values of the past, () for none, None for a graph without a cache. other: keys and values of
    the layer whose it reads, () for a layer with its own, None for a model in which no layer reads another's.
    """
    attention = layer.self_attn
    own, source = attention.layer_idx, attention.kind.shares
    past = None if cached is None else Past({own: cached} if cached else {})
    shared = None if other is None else {source: other} if other and source is not None else {}
    out: Tensor = layer(
        hidden,
        position_embeddings=tables,
        attention_mask=mask,
        cache=past,
        shared=shared,
        per_head=per_head,
        **arguments,
    )
    return out, None if past is None else past.new.get(own), None if shared is None else shared.get(own)


def _layer(module: DecoderLayer, given: StackInputs) -> Tensor:
    tables, mask = given.of(module.self_attn.kind)
    out: Tensor = module(
        given.hidden,
        position_embeddings=tables,
        attention_mask=mask,
        cache=given.past,
        shared=given.shared,
        per_head=given.per_head,
        **module.arguments(given),
    )
    return out
