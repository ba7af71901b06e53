# SPDX-License-Identifier: Apache-2.0
"""One text layer of Gemma4 and what it is made of.

It owns sandwich norms, normalized values, per-layer inputs and the order of dense MLP and experts. Keys, cache, masks
and graphs are pyquant.decoder's, experts experts.py.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar

from torch import Tensor

from pyquant.decoder.graphs import Dispatch, StackInputs, TextProfile, float_type
from pyquant.decoder.kind import LayerKind
from pyquant.decoder.layers import DecoderAttention, DecoderLayer, Mask
from pyquant.decoder.past import KeyValue
from pyquant.errors import InputError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class, home
from pyquant.models.gemma4.text.rotary import SLIDING, VARIANTS
from pyquant.wrap import hf
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.gated_mlp import QuantGatedMLP
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import RotaryTables

Shared = MutableMapping[Any, KeyValue]  # HF's: by layer type, or by index in releases before 5.8


@register(hf_class("Gemma4TextMLP"))
class QuantGemma4TextMLP(QuantGatedMLP):
    """GeGLU; twice as wide in layers that read shared keys, where the config says so."""


@register(hf_class("Gemma4TextAttention"))
class QuantGemma4TextAttention(DecoderAttention):
    """Queries, keys and values are normalized, queries and keys rotated; logits are not scaled.

    Where the config says that keys are values, there is no v_proj: values are k_proj's output, before its norm.
    """

    CHILDREN: ClassVar[tuple[str, ...]] = (*DecoderAttention.CHILDREN, "v_norm")
    OPTIONAL: ClassVar[tuple[str, ...]] = ("k_proj", "v_proj", "k_norm", "v_norm")
    UNTRACED: ClassVar[tuple[str, ...]] = ("shared_key", "stores")  # of HF's mapping, which a graph does not have
    ROTARY = hf_class("Gemma4TextRotaryEmbedding")
    PAIRS: ClassVar[tuple[tuple[str, str], ...]] = ()  # values are normalized

    v_norm: QModule | None

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        by_index = hasattr(fp, "kv_shared_layer_index")
        self.shared_key = self.layer_idx if by_index else fp.layer_type
        if by_index and self.kind.shares is not None:
            self.shared_key = self.kind.shares
        self.stores = bool(fp.store_full_length_kv)

    @classmethod
    def layer_kind(cls, fp: Any) -> LayerKind:
        config, layer_type = fp.config, fp.layer_type
        shares = None
        if fp.is_kv_shared_layer:
            own = [i for i in range(own_layers(config)) if config.layer_types[i] == layer_type]
            if not own:
                raise InputError(
                    f"layer {fp.layer_idx} reads the keys of an earlier {layer_type} layer, and no layer of the model "
                    "has keys of its own (an assistant model, which reads those of another one); pyquant does not "
                    "quantize such models"
                )
            shares = own[-1]
        return LayerKind(
            kv_heads=int(config.num_attention_heads) // int(fp.num_key_value_groups),
            head_dim=int(fp.head_dim),
            window=None if fp.sliding_window is None else int(fp.sliding_window),
            shares=shares,
            variant=VARIANTS[layer_type],
            ahead=sees_ahead(config.use_bidirectional_attention, layer_type),
        )

    @classmethod
    def rotary_scaling(cls, fp: Any) -> float:
        return float(getattr(cls.ROTARY(fp.config), f"{fp.layer_type}_attention_scaling"))

    def forward(  # type: ignore[override]  # HF's order of arguments
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables,
        attention_mask: Mask = None,
        shared_kv_states: Shared | None = None,
        cache: Any = None,
        *,
        shared: dict[int, KeyValue] | None = None,
        per_head: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """As DecoderAttention. shared_kv_states: HF's mapping of shared keys and values, which the last layer of its
        type with keys of its own fills, and those after it read."""
        if shared is None and self.kind.shares is not None:
            if self.shared_key not in (given := shared_kv_states or {}):
                raise InputError(
                    f"{self.path or 'this attention'} reads keys and values of layer {self.kind.shares}: pass "
                    f"shared_kv_states with {self.shared_key!r}; it has {', '.join(map(repr, given)) or 'none'}"
                )
            shared = {self.kind.shares: given[self.shared_key]}
        elif shared is None and shared_kv_states is not None:
            shared = {}
        out = super().forward(
            hidden_states, position_embeddings, attention_mask, cache, shared=shared, per_head=per_head, **kwargs
        )
        if shared_kv_states is not None and self.stores:
            assert shared is not None
            shared_kv_states[self.shared_key] = shared[self.layer_idx]
        return out

    def keys(self, x: Tensor, tables: RotaryTables) -> KeyValue:
        assert self.k_proj is not None, f"{self.path!r} has no k_proj"
        projected = self.heads(self.k_proj(x))
        raw = projected if self.v_proj is None else self.heads(self.v_proj(x))
        key = self.q("key", self.k_rotary(self.normed(self.k_norm, projected), tables).transpose(1, 2))
        return key, self.q("value", self.normed(self.v_norm, raw).transpose(1, 2))


@register(hf_class("Gemma4TextDecoderLayer"))
class QuantGemma4TextDecoderLayer(DecoderLayer):
    """Attention and MLP, each between two norms, each added to the residual stream; then the per-layer input, gated by
    the stream, projected, normalized and added; then all of it times `layer_scalar`.

    With experts, the sum of the dense MLP and of the experts, each normalized, is what the last norm of the MLP takes.
    """

    CHILDREN: ClassVar[tuple[str, ...]] = (
        *DecoderLayer.CHILDREN,
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "act_fn",
        "per_layer_input_gate",
        "per_layer_projection",
        "post_per_layer_input_norm",
        "router",
        "experts",
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
        "pre_feedforward_layernorm_2",
    )
    OPTIONAL: ClassVar[tuple[str, ...]] = CHILDREN[6:]
    SITES = {
        **DecoderLayer.SITES,
        "mlp_residual": Role.ACTIVATION,
        "experts_sum": Role.ACTIVATION,
        "per_layer_input": Role.ACTIVATION,
        "per_layer_gated": Role.ACTIVATION,
        "per_layer_residual": Role.ACTIVATION,
        "layer_scalar": Role.CONSTANT,
    }
    FEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "input_layernorm": DecoderLayer.FEEDS["input_layernorm"],
        "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        "pre_feedforward_layernorm_2": ("experts.gate_up_proj",),
    }
    READS: ClassVar[tuple[str, ...]] = (*FEEDS, "router.norm", "per_layer_input_gate")
    WRITES: ClassVar[tuple[str, ...]] = (
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "post_per_layer_input_norm",
    )

    self_attn: QuantGemma4TextAttention
    pre_feedforward_layernorm: QModule
    post_feedforward_layernorm: QModule
    act_fn: QModule
    per_layer_input_gate: QModule | None
    per_layer_projection: QModule
    post_per_layer_input_norm: QModule
    router: QModule | None
    experts: QModule
    post_feedforward_layernorm_1: QModule
    post_feedforward_layernorm_2: QModule
    pre_feedforward_layernorm_2: QModule
    layer_scalar: Tensor

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        absent: tuple[str, ...] = () if fp.hidden_size_per_layer_input else _PER_LAYER
        absent += () if fp.enable_moe_block else ("experts_sum",)
        return {name: role for name, role in cls.SITES.items() if name not in absent}

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.register_buffer("layer_scalar", fp.layer_scalar)

    def forward(  # type: ignore[override]  # HF's order of arguments
        self,
        hidden_states: Tensor,
        per_layer_input: Tensor | None = None,
        shared_kv_states: Shared | None = None,
        position_embeddings: tuple[Tensor, Tensor] | RotaryTables | None = None,
        attention_mask: Mask = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        *,
        shared: dict[int, KeyValue] | None = None,
        per_head: bool = False,
        dispatch: Dispatch | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, S, D), per_layer_input (B, S, P) where the model has them -> (B, S, D); the other arguments
        as QuantGemma4TextAttention takes them. dispatch: how a graph uses the experts, see ExpertsProfile."""
        hf.refuse_recording(kwargs)
        cache = hf.take_cache(cache, kwargs)
        if position_embeddings is None:
            raise InputError("a text layer needs position_embeddings: cos and sin, each (B, S, head_dim)")
        x = self.q("act_in", hidden_states)
        attended, _ = self.self_attn(
            self.input_layernorm(x),
            position_embeddings,
            attention_mask,
            shared_kv_states,
            cache,
            shared=shared,
            per_head=per_head,
        )
        x = self.q("attn_residual", x + self.post_attention_layernorm(attended))
        x = self.q("mlp_residual", x + self.post_feedforward_layernorm(self._fed(x, dispatch)))
        if self.per_layer_input_gate is not None:
            x = self._with_input(x, per_layer_input)
        return self.q("act_out", x * self.const("layer_scalar", self.layer_scalar))

    def _fed(self, x: Tensor, dispatch: Dispatch | None) -> Tensor:
        """The dense MLP, and the experts beside it: both read the residual stream, each through a norm of its own; the
        router reads it as it is."""
        dense: Tensor = self.mlp(self.pre_feedforward_layernorm(x))
        if self.router is None:
            return dense
        rows = (-1, x.shape[-1])
        _, weights, index = self.router(x.reshape(rows))
        given = self.pre_feedforward_layernorm_2(x).reshape(rows)
        chosen = self.experts(given, index, weights, dispatch=dispatch).reshape(x.shape)
        both = self.post_feedforward_layernorm_1(dense) + self.post_feedforward_layernorm_2(chosen)
        return self.q("experts_sum", both)

    def _with_input(self, x: Tensor, given: Tensor | None) -> Tensor:
        if given is None:
            raise InputError(
                f"the text layer {self.path!r} needs per_layer_input (B, S, {self._width}): its model has per-layer "
                "embeddings"
            )
        assert self.per_layer_input_gate is not None
        gate = self.act_fn(self.per_layer_input_gate(x))
        gated = self.q("per_layer_gated", gate * self.q("per_layer_input", given))
        added = self.post_per_layer_input_norm(self.per_layer_projection(gated))
        return self.q("per_layer_residual", x + added)

    @property
    def _width(self) -> int:
        return int(self.config.hidden_size_per_layer_input)

    def extra_inputs(self, profile: TextProfile) -> Mapping[str, TensorSpec]:
        if self.per_layer_input_gate is None:
            return {}
        return {"per_layer_input": TensorSpec((profile.batch_size, profile.seq_len, self._width), float_type(self))}

    def chosen(self, given: StackInputs) -> Mapping[str, Any]:
        """How a graph uses the experts, for a layer that has some."""
        return {} if self.router is None else {"dispatch": given.experts}

    def arguments(self, given: StackInputs) -> Mapping[str, Any]:
        return {**given.extras, **self.chosen(given)}


_PER_LAYER = ("per_layer_input", "per_layer_gated", "per_layer_residual")


def own_layers(config: Any) -> int:
    """How many layers have keys of their own; those after them read what these made."""
    return int(config.num_hidden_layers) - int(getattr(config, "num_kv_shared_layers", 0) or 0)


def joined() -> str:
    """Which layers let the tokens of an image see each other: from 5.13 on sliding ones, within the window; from 5.9 on
    all layers; before that sliding ones, beyond the window too."""
    if home.has("create_masks_for_vision_model"):
        return "within the window"
    return "all layers" if home.has("get_block_sequence_ids_for_mask") else "sliding layers"


def sees_ahead(bidirectional: str | None, layer_type: str) -> bool:
    """Whether queries of such a layer may look at later keys, of an image or of all."""
    return bidirectional == "all" or (bidirectional == "vision" and (layer_type == SLIDING or joined() == "all layers"))
