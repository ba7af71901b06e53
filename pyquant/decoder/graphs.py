# SPDX-License-Identifier: Apache-2.0
"""TextProfile and text_graph: the static prefill, append and decode graphs of a text model, a layer, an attention.

It owns the names and shapes of their inputs and outputs. The arithmetic is the wrappers' own; masks and rotary tables
are inputs that the host makes (host.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pyquant.decoder.kind import LayerKind
from pyquant.decoder.past import KeyValue, Past
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.bands import block_length
from pyquant.wrap.base import QModule
from pyquant.wrap.dtype import float_parameter
from pyquant.wrap.rotary import RotaryTables

if TYPE_CHECKING:
    from pyquant.decoder.layers import DecoderAttention


Attention = Literal["batched", "per_head"]
Sliding = Literal["auto", "full", "banded"]
Dispatch = Literal["dense", "gather"]  # of experts, see TextProfile
LEAST_BLOCKS = 3  # two blocks have as many keys a query as the whole


@dataclass(frozen=True)
class TextProfile:
    """One graph over `seq_len` new tokens after `past_len` cached ones, for `batch_size` rows.

    `layer`: None for the stack, i for layer i alone. `attention`: all heads in one product, or one product per head.
    `sliding`: how layers with a window attend in a graph without a past: "full" to all keys under a mask, "banded" in
    blocks (wrap/bands.py), "auto" in blocks where three or more fit.
    `experts`: of a model with experts, "dense" computes all of them for each token, "gather" those that were chosen,
    with their weights gathered; None gathers where that reads fewer weights (a decode step).

    Inputs: `inputs_embeds` (`hidden_states` for a layer) (B, S, D), what the family adds, `attention_mask`
    (B, 1, S, kept + S) of 0 and wrap.attention.FILL, `cos` and `signed_sin` (B, S, head_dim; the first half of sin
    negated), and with a past `past_key_{i}`, `past_value_{i}` (B, Hkv, kept, head_dim). `kept` is past_len, or the last
    window - 1 of them in a layer with a window, in any order. In bands the mask is (B, 1, S, 2 * block): the keys of
    the block before a query's own, then those of its own. A model whose layers are of several variants has masks and
    tables with their names (`attention_mask_sliding`). A layer that reads the keys of another one has no past of its
    own; alone, it takes all keys and values as `shared_key`, `shared_value` (B, Hkv, kept + S, head_dim).
    Outputs: `hidden_states`, before the final norm (`hidden_states_out` for a layer), and what to put into the cache:
    `new_key_{i}`, `new_value_{i}` (B, Hkv, S, head_dim). A layer's tensors have no `_{i}`.

    Raises ProfileError for what no model could accept. What contradicts one model is raised when it is exported.
    """

    batch_size: int
    seq_len: int
    past_len: int = 0
    layer: int | None = field(default=None, kw_only=True)
    attention: Attention = field(default="batched", kw_only=True)
    sliding: Sliding = field(default="full", kw_only=True)
    experts: Dispatch | None = field(default=None, kw_only=True)
    LEAST = {"batch_size": 1, "seq_len": 1, "past_len": 0, "layer": 0}

    def __post_init__(self) -> None:
        for name, low in self.LEAST.items():
            value = getattr(self, name)
            if name == "layer" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ProfileError(f"TextProfile.{name} is an integer of at least {low}, got {value!r}")
        if self.attention not in get_args(Attention):
            raise ProfileError(f"TextProfile.attention is 'batched' or 'per_head', got {self.attention!r}")
        if self.experts is not None and self.experts not in get_args(Dispatch):
            raise ProfileError(f"TextProfile.experts is 'dense', 'gather' or None, got {self.experts!r}")
        if self.sliding not in get_args(Sliding):
            raise ProfileError(f"sliding is one of {', '.join(get_args(Sliding))}, got {self.sliding!r}")

    def keys(self, kind: LayerKind) -> int:
        """Keys that the queries of such a layer see: the cached ones and the new ones."""
        return kind.kept(self.past_len) + self.seq_len

    def block(self, kind: LayerKind) -> int | None:
        """Tokens of a block where such a layer attends in bands; None: to all keys."""
        if self.sliding == "full" or kind.window is None or kind.ahead or self.past_len:
            return None
        return block_length(self.seq_len, kind.window, 2 if self.sliding == "banded" else LEAST_BLOCKS)

    @property
    def kind(self) -> Literal["prefill", "append", "decode"]:
        """Without a past, several tokens after one, one token after one."""
        if not self.past_len:
            return "prefill"
        return "decode" if self.seq_len == 1 else "append"

    @property
    def name(self) -> str:
        """`prefill_s8`, `append_s8`, `decode`; of one layer `prefill_s8_layer0`."""
        kind = "decode" if self.kind == "decode" else f"{self.kind}_s{self.seq_len}"
        return kind if self.layer is None else f"{kind}_layer{self.layer}"


class StackInputs(NamedTuple):
    """What a stack of layers takes: tables and masks by variant (LayerKind), and what a family adds, by name.

    hidden (B, S, D). past: HF's cache, a Past, or None. shared: the keys of layers that others read, filled on the way;
    None where no layer does. keep: how many last places layers after the last one with keys compute; 0: all.
    """

    hidden: Tensor
    tables: Mapping[str, RotaryTables]
    masks: Mapping[str, AdditiveMask]
    past: Any = None
    extras: Mapping[str, Tensor] = {}
    shared: dict[int, KeyValue] | None = None
    per_head: bool = False
    experts: Dispatch | None = None
    keep: int = 0

    def of(self, kind: LayerKind) -> tuple[RotaryTables, AdditiveMask]:
        """The tables and the mask of a layer."""
        return self.tables[kind.variant], self.masks[kind.variant]


def text_graph(
    module: QModule,
    profile: TextProfile,
    call: Callable[[Any, StackInputs], Tensor],
    *,
    first: str,
    output: str,
    attentions: Sequence[DecoderAttention],
    extras: Mapping[str, TensorSpec] | None = None,
    part: nn.Module | None = None,
    many: bool = False,
) -> GraphAdapter:
    """`call(module, StackInputs)` as a static graph.

    `attentions` are those whose keys and values go in and out; past ones go through the very sites of the new ones,
    which changes nothing in them: they are on that grid. `extras`: further inputs that the family reads. `part`: what
    `call` uses of the module, where that is not all. `many`: tensors of the cache are named by their layer.
    Raises ProfileError when the profile contradicts the model, PhaseError before convert.
    """
    require_text_profile(profile, module)
    _check_length(attentions[0].config, profile)
    extras = dict(extras or {})
    owners = [attention for attention in attentions if attention.kind.shares is None]
    ends = {id(attention): f"_{i}" if many else "" for i, attention in enumerate(attentions)}
    keeping = [attention for attention in owners if attention.kind.kept(profile.past_len)]
    past_names = [(a, f"past_key{ends[id(a)]}", f"past_value{ends[id(a)]}") for a in keeping]
    sources = {layer: a for a in attentions if (layer := a.kind.shares) is not None}
    present = {attention.layer_idx for attention in owners}
    outside = {layer: a for layer, a in sources.items() if layer not in present}  # keys that other graphs make
    inputs = _inputs(module, profile, attentions, first, extras, past_names, outside)
    names, per_head = tuple(inputs), profile.attention == "per_head"
    kinds = {attention.kind.variant: attention.kind for attention in attentions}

    def graph(*tensors: Tensor, **_: nn.Module) -> tuple[Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        past = Past({a.layer_idx: module.run_block(a, _on_grid, given[k], given[v]) for a, k, v in past_names})
        shared = dict.fromkeys(outside, (given["shared_key"], given["shared_value"])) if outside else {}
        out = call(
            module,
            StackInputs(
                hidden=given[first],
                tables={name: RotaryTables(*(given[t].unsqueeze(2) for t in k.tables)) for name, k in kinds.items()},
                masks={name: AdditiveMask(given[k.mask], profile.block(k)) for name, k in kinds.items()},
                past=past,
                extras={name: given[name] for name in extras},
                shared=shared if sources else None,
                per_head=per_head,
                experts=profile.experts,
            ),
        )
        return out, *(tensor for attention in owners for tensor in past.new[attention.layer_idx])

    outputs = (output, *(f"{new}{ends[id(a)]}" for a in owners for new in ("new_key", "new_value")))
    parts = {"module": module if part is None else part}
    return GraphAdapter(module, graph, inputs=inputs, outputs=outputs, name=profile.name, parts=parts)


def _on_grid(attention: DecoderAttention, key: Tensor, value: Tensor) -> KeyValue:
    return attention.on_cache_grid(key, value)


def _inputs(
    module: QModule,
    profile: TextProfile,
    attentions: Sequence[DecoderAttention],
    first: str,
    extras: Mapping[str, TensorSpec],
    past_names: Sequence[tuple[DecoderAttention, str, str]],
    outside: Mapping[int, DecoderAttention],
) -> dict[str, TensorSpec]:
    batch, tokens, dtype = profile.batch_size, profile.seq_len, float_type(module)
    specs = {first: TensorSpec((batch, tokens, attentions[0].config.hidden_size), dtype), **extras}
    for attention in attentions:
        kind = attention.kind
        block = profile.block(kind)
        keys = profile.keys(kind) if block is None else 2 * block
        specs[kind.mask] = TensorSpec((batch, 1, tokens, keys), dtype)
        specs |= dict.fromkeys(kind.tables, TensorSpec((batch, tokens, kind.head_dim), dtype))
    for attention, key, value in past_names:
        shape = (batch, attention.kind.kv_heads, attention.kind.kept(profile.past_len), attention.kind.head_dim)
        specs |= dict.fromkeys((key, value), TensorSpec(shape, dtype))
    for attention in outside.values():
        shape = (batch, attention.kind.kv_heads, profile.keys(attention.kind), attention.kind.head_dim)
        specs |= dict.fromkeys(("shared_key", "shared_value"), TensorSpec(shape, dtype))
    return specs


def require_text_profile(profile: Any, module: object) -> None:
    """Raise ProfileError for a profile of another kind, which does not name the cache."""
    if not isinstance(profile, TextProfile):
        raise ProfileError(
            f"{type(module).__name__} is exported with a TextProfile(batch_size=, seq_len=, past_len=) of its family, "
            f"got {type(profile).__name__}"
        )


def _check_length(config: Any, profile: TextProfile) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    least = max(profile.past_len + 1, profile.seq_len)  # an append graph may have places that stay empty
    if longest is not None and least > longest:
        raise ProfileError(
            f"{profile.past_len} cached and {profile.seq_len} new tokens are more than the model's "
            f"max_position_embeddings, {longest}; use a shorter profile"
        )


def float_type(module: nn.Module) -> torch.dtype:
    """The floating type of a wrapper's parameters."""
    return float_parameter(module).dtype
