# SPDX-License-Identifier: Apache-2.0
"""The stack of decoder layers: embedding or embeddings in, hidden states out, with HF's calling convention.

It owns the order of the steps and the rotary tables. Layers are layers.py, HF's arguments inputs.py and masks.py,
padded calibration batches rows.py, static graphs graphs.py. A family derives from these and names its HF classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.decoder.graphs import StackInputs, TextProfile, float_type, require_text_profile, text_graph
from pyquant.decoder.inputs import positions_of, refuse_unsupported, tokens_of
from pyquant.decoder.kind import LayerKind, variants
from pyquant.decoder.layers import DecoderAttention, DecoderLayer, call_layer
from pyquant.decoder.masks import padded_keys, text_mask
from pyquant.decoder.past import Past
from pyquant.decoder.rows import row_by_row
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.wrap import hf
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.hf_model import QModel
from pyquant.wrap.rotary import RotaryTables


class DecoderRotary(QModule):
    """Rotary tables, computed by HF's own module. In static graphs they are inputs.

    `AXES`: how many positions a token has: 1, or 3 for time, height and width. A module that serves layers of several
    variants overrides `compute`, `frequencies` and `scalings`.
    """

    SITES = {"cos": Role.UNIT, "sin": Role.UNIT}
    AXES = 1

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        unit = all(scaling <= 1 for scaling in cls.scalings(fp))  # YaRN scales the tables
        return dict.fromkeys(cls.SITES, Role.UNIT if unit else Role.ACTIVATION)

    @classmethod
    def scalings(cls, fp: Any) -> tuple[float, ...]:
        """What HF's module multiplies cosines and sines by, of each variant."""
        return (float(fp.attention_scaling),)

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        lost = any(buffer.is_meta for buffer in fp.buffers())  # its buffers are in no checkpoint
        with torch.device("cpu"):
            self.float_rotary = type(fp)(fp.config) if lost else copy.deepcopy(fp)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids (B, S), or (AXES, B, S) -> (cos, sin), each (B, S, head_dim), in x's dtype."""
        cos, sin = self.compute(x, position_ids)
        return self.q("cos", cos), self.q("sin", sin)

    def tables(self, x: Tensor, position_ids: Tensor, variant: str = "") -> RotaryTables:
        """The same in the form of wrap.Rotary, and not yet on the grid."""
        return RotaryTables.of(self.compute(x, position_ids, variant), parts=1)

    def on_grid(self, tables: RotaryTables) -> RotaryTables:
        """`tables` through the sites; those of the layers then change nothing."""
        return RotaryTables(self.q("cos", tables.cos), self.q("sin", tables.signed_sin))

    def frequencies(self, variant: str = "") -> tuple[Tensor, float]:
        """The angle of each pair of channels at position 1 (head_dim / 2,) float32, and the factor of cos and sin."""
        rotary = self.float_rotary
        return rotary.inv_freq.detach().float().cpu(), float(rotary.attention_scaling)

    def rope_type(self, variant: str = "") -> str:
        """HF's name of the way in which the frequencies are made."""
        return str(getattr(self.float_rotary, "rope_type", "default"))

    def compute(self, x: Tensor, position_ids: Tensor, variant: str = "") -> tuple[Tensor, Tensor]:
        """(cos, sin) of HF's module, not on the grid, for layers of `variant`."""
        if position_ids.dim() == 2:
            position_ids = position_ids[None].expand(self.AXES, -1, -1)
        cos, sin = self.float_rotary(x, position_ids[0] if self.AXES == 1 else position_ids)
        return cos, sin

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """Raises ProfileError: no graph computes the tables."""
        raise ProfileError(
            "the rotary tables are inputs of the static graphs, made by the host from the positions; export the text "
            "model or a layer with a TextProfile"
        )


class DecoderModel(QModel):
    """Token embedding, layers, final norm.

    `inputs_embeds` is what enters the stack. A family that adds something between the layers overrides `step` and
    `extra_inputs`, and passes its tensors as `extras`, each (B, S, ...), by the names of its graph inputs. One whose
    variants of layers have rotary modules of their own lists them in CHILDREN and overrides `rotary_of`.
    """

    CHILDREN: ClassVar[tuple[str, ...]] = ("embed_tokens", "layers", "norm", "rotary_emb")
    OUTPUT = BaseModelOutputWithPast
    SITES = {"inputs_embeds": Role.ACTIVATION}
    BLOCKS = "layers"
    READS: ClassVar[tuple[str, ...]] = ("norm",)
    WRITES: ClassVar[tuple[str, ...]] = ("embed_tokens",)

    embed_tokens: QModule
    layers: nn.ModuleList
    norm: QModule
    rotary_emb: DecoderRotary

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.kinds: tuple[LayerKind, ...] = tuple(attention.kind for attention in self.attentions())
        self.variants = variants(self.kinds)
        # (variant, window, first layer) as plain values, which torch.compile carries over a graph break
        self._masked = [(name, kind.window, self.kinds.index(kind)) for name, kind in self.variants.items()]
        self.causal = True  # a family with a model whose tokens see later ones says so
        self.shares = any(kind.shares is not None for kind in self.kinds)
        # from this layer on all read keys that others made; their number, where none does
        self.readers = max((i + 1 for i, kind in enumerate(self.kinds) if kind.shares is None), default=0)

    def get_input_embeddings(self) -> QModule:
        """The token table."""
        return self.embed_tokens

    def attentions(self) -> list[DecoderAttention]:
        """The attention of each layer."""
        return [self.layer(i).self_attn for i in range(len(self.layers))]

    def rotary_of(self, variant: str) -> DecoderRotary:
        """The module that makes the rotary tables of the layers of `variant`; a child of this one."""
        return self.rotary_emb

    @property
    def axes(self) -> int:
        """How many positions a token has; see DecoderRotary.AXES."""
        return self.rotary_of(self.kinds[0].variant).AXES

    def layer(self, i: int) -> DecoderLayer:
        """Layer i."""
        layer = self.layers[i]
        assert isinstance(layer, DecoderLayer), f"{type(layer).__name__} is no decoder layer"
        return layer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids (B, S) or inputs_embeds (B, S, D) -> last_hidden_state (B, S, D), and the cache.

        attention_mask: see masks.text_mask. position_ids: see inputs.positions_of; None counts on from the cache.

        While calibrating, rows of a batch that a 2-D mask pads run one by one without their padding; the outputs and
        the cache are zeros there. Raises InputError for inputs that contradict each other.
        """
        return self.run(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, kwargs)

    def run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        kwargs: MutableMapping[str, Any],
        extras: Callable[[Tensor, torch.dtype], Mapping[str, Tensor]] | None = None,
        keep: int = 0,
    ) -> Any:
        """The steps of forward. `extras`: makes what the family adds, from the tokens and the model's floating type.
        `keep`: compute the last so many places only, where no later place needs the others; not while calibrating."""
        refuse_unsupported(kwargs, self.config, self.causal)
        cache = hf.take_cache(cache, kwargs)
        tokens = tokens_of(input_ids, inputs_embeds)
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False))
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past = 0 if cache is None else cache.get_seq_length()
        positions, text_positions = positions_of(position_ids, tokens, past, self.axes)
        dtype = tokens.dtype if tokens.is_floating_point() else float_type(self.norm)
        added = {} if extras is None else extras(tokens, dtype)
        observing = self.observes
        valid = padded_keys(attention_mask, tokens, cache) if observing else None
        if valid is None:
            embeds = self._embed(tokens)
            masks = self.masks(attention_mask, embeds, cache, text_positions, added)
            tables = self.tables(embeds, positions)
            kept = 0 if observing else keep
            hidden = self._normed(StackInputs(embeds, tables, masks, cache, added, keep=kept))
        else:
            hidden = row_by_row(self._row, tokens, valid, positions, cache, added)
        out = hf.make_output(self.output_type, last_hidden_state=hidden, cache=cache)
        return hf.as_called(out, kwargs, self.config)

    def tables(self, like: Tensor, positions: Tensor) -> Mapping[str, RotaryTables]:
        """The rotary tables of each variant at `positions` (AXES, B, S), not yet on the grid."""
        return {variant: self.rotary_of(variant).tables(like, positions, variant) for variant in self.variants}

    def on_grid(self, tables: Mapping[str, RotaryTables]) -> Mapping[str, RotaryTables]:
        """`tables` through the sites of the rotary modules."""
        return {variant: self.rotary_of(variant).on_grid(each) for variant, each in tables.items()}

    def masks(
        self,
        attention_mask: Tensor | None,
        embeds: Tensor,
        cache: Any,
        text_positions: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Mapping[str, AdditiveMask]:
        """The mask of each variant; see masks.text_mask. `extras`: what the family adds to the call."""
        found = {}
        for variant, window, layer in self._masked:
            found[variant] = text_mask(attention_mask, embeds, cache, text_positions, window=window, layer=layer)
        return found

    def _embed(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        return embeds

    def _row(self, tokens: Tensor, positions: Tensor, past: Past, extras: Mapping[str, Tensor]) -> Tensor:
        embeds = self._embed(tokens)
        masks = self.masks(None, embeds, past, None, extras)
        return self._normed(StackInputs(embeds, self.tables(embeds, positions), masks, past, extras))

    def _normed(self, given: StackInputs) -> Tensor:
        out: Tensor = self.norm(self.stack(given))
        return out

    def stack(self, given: StackInputs) -> Tensor:
        """inputs_embeds (B, S, D) -> (B, S, D) before the final norm; tables as `tables` makes them."""
        given = self.prepared(given)
        hidden = self.q("inputs_embeds", given.hidden)
        given = self.enriched(hidden, given)
        for i in range(len(self.layers)):
            if given.keep and i == self.readers:
                hidden, given = self.last_places(hidden, given)
            hidden = self.step(i, hidden, given)
        return hidden

    def last_places(self, hidden: Tensor, given: StackInputs) -> tuple[Tensor, StackInputs]:
        """The last `given.keep` places of all that layers without keys of their own take."""
        last = slice(-given.keep, None)
        tables = {name: RotaryTables(*(t[:, last] for t in each)) for name, each in given.tables.items()}
        masks = {name: AdditiveMask(mask.values[:, :, last]) for name, mask in given.masks.items()}
        extras = {name: value[:, last] for name, value in given.extras.items()}
        return hidden[:, last], given._replace(tables=tables, masks=masks, extras=extras)

    def enriched(self, hidden: Tensor, given: StackInputs) -> StackInputs:
        """With what the family computes once from the embeddings `hidden` (B, S, D), for all layers."""
        return given

    def prepared(self, given: StackInputs) -> StackInputs:
        """With the tables on the grid, and a place for the keys that layers share."""
        shared = {} if self.shares and given.shared is None else given.shared
        return given._replace(tables=self.on_grid(given.tables), shared=shared)

    def step(self, i: int, hidden: Tensor, given: StackInputs) -> Tensor:
        """Layer i and what follows it."""
        tables, mask = given.of(self.kinds[i])
        if self.state.explicit:
            return self._recorded(i, hidden, tables, mask, given)
        out: Tensor = self.layer(i)(
            hidden,
            position_embeddings=tables,
            attention_mask=mask,
            cache=given.past,
            shared=given.shared,
            per_head=given.per_head,
            **self.layer_arguments(i, given),
        )
        return out

    def _recorded(self, i: int, hidden: Tensor, tables: RotaryTables, mask: AdditiveMask, given: StackInputs) -> Tensor:
        """Layer i in a graph: what it reads of the cache and of others is given to it, and what it adds comes back."""
        layer, past, shared = self.layer(i), given.past, given.shared
        assert past is None or isinstance(past, Past), f"a graph has no {type(past).__name__}"
        kind, index = layer.self_attn.kind, layer.self_attn.layer_idx
        cached = None if past is None else past.given.get(index, ())
        other = None if shared is None else () if kind.shares is None else shared[kind.shares]
        more = self.layer_arguments(i, given)
        out: Tensor
        out, new, whole = self.run_block(
            layer, call_layer, hidden, tables, mask, cached, other, given.per_head, dict(more)
        )
        if past is not None and new is not None:
            past.new[index] = new
        if shared is not None and whole is not None:
            shared[index] = whole
        return out

    def layer_arguments(self, i: int, given: StackInputs) -> Mapping[str, Any]:
        """Further arguments of layer i, that only the family has."""
        return {}

    def extra_inputs(self, profile: TextProfile) -> Mapping[str, TensorSpec]:
        """What the family adds to the inputs of a graph: of the stack, or of layer `profile.layer`."""
        return {}

    def as_export_module(self, profile: TextProfile) -> GraphAdapter:
        """The stack, or one layer with what the family adds after it; names and shapes are TextProfile's.

        Raises ProfileError for a profile that contradicts the model.
        """
        require_text_profile(profile, self)
        attentions, extras = self.attentions(), self.extra_inputs(profile)
        if profile.layer is None:
            return text_graph(
                self,
                profile,
                _stack,
                first="inputs_embeds",
                output="hidden_states",
                attentions=attentions,
                extras=extras,
                many=True,
            )
        if profile.layer >= len(self.layers):
            raise ProfileError(f"TextProfile.layer is {profile.layer}, but the model has {len(self.layers)} layers")
        return text_graph(
            self,
            profile,
            _LayerOf(profile.layer),
            first="hidden_states",
            output="hidden_states_out",
            attentions=[attentions[profile.layer]],
            extras=extras,
            part=_OneLayer(self, profile.layer),
        )


def _stack(model: DecoderModel, given: StackInputs) -> Tensor:
    return model.stack(given)


class _LayerOf:
    """Layer i of the stack, with what comes before the first one and after each."""

    def __init__(self, i: int) -> None:
        self.i = i

    def __call__(self, model: DecoderModel, given: StackInputs) -> Tensor:
        hidden = model.q("inputs_embeds", given.hidden) if self.i == 0 else given.hidden
        return model.step(self.i, hidden, model.prepared(given))


class _OneLayer(nn.Module):
    """What the graph of one layer uses of the text model, each under its path there."""

    BLOCKS = "layers"

    def __init__(self, model: DecoderModel, layer: int) -> None:
        super().__init__()
        rotary = model.rotary_of(model.kinds[layer].variant)
        self.sites = model.sites
        self.add_module(next(name for name, child in model.named_children() if child is rotary), rotary)
        self.layers = nn.ModuleDict({str(layer): model.layers[layer]})
