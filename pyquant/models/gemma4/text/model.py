# SPDX-License-Identifier: Apache-2.0
"""Gemma4's text model and its causal language model, with HF's calling convention.

It owns per-layer inputs from ids, embeddings or the caller, masks of two kinds of layers, and the soft-cap of logits.
The stack, the cache and the graphs are pyquant.decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyquant.decoder.causal_lm import CausalLM
from pyquant.decoder.graphs import StackInputs, TextProfile, float_type
from pyquant.decoder.masks import Blocks, no_mask, text_mask
from pyquant.decoder.model import DecoderModel
from pyquant.errors import InputError, ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class, home
from pyquant.models.gemma4.places import visual_runs
from pyquant.models.gemma4.table import TablePart, part_graph
from pyquant.models.gemma4.text import per_layer
from pyquant.models.gemma4.text.embedding import QuantGemma4TextScaledWordEmbedding
from pyquant.models.gemma4.text.layers import QuantGemma4TextDecoderLayer, joined
from pyquant.models.gemma4.text.rotary import TYPES
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.registry import register

#: Names of what the text model adds to a call, each (B, S, ...): ids of the per-layer table, or its rows (B, S, L, P);
#: token types; what the layers get.
IDS, TOKENS, TYPES_OF_TOKENS, INPUTS = "per_layer_ids", "per_layer_tokens", "mm_token_type_ids", "per_layer_inputs"
_KEEPS = home.takes("Gemma4TextModel", "logits_to_keep")  # layers that read shared keys compute the kept places only


@register(hf_class("Gemma4TextModel"))
class QuantGemma4TextModel(DecoderModel):
    """Sliding and full layers, of which the last ones may read the keys of earlier ones; with per-layer inputs where
    the config has them."""

    CHILDREN: ClassVar[tuple[str, ...]] = (*DecoderModel.CHILDREN, *per_layer.CHILDREN)
    OPTIONAL = per_layer.CHILDREN
    SITES = {**DecoderModel.SITES, **per_layer.SITES}
    READS = (*DecoderModel.READS, "per_layer_model_projection")

    embed_tokens: QuantGemma4TextScaledWordEmbedding
    embed_tokens_per_layer: QuantGemma4TextScaledWordEmbedding
    per_layer_model_projection: QModule
    per_layer_projection_norm: QModule

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        has = bool(fp.config.hidden_size_per_layer_input)
        return {name: role for name, role in cls.SITES.items() if has or name not in per_layer.SITES}

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.per_layer_width = int(self.config.hidden_size_per_layer_input or 0)
        self.bidirectional = self.config.use_bidirectional_attention
        self.causal = bool(getattr(self.config, "is_causal", True))  # before 5.12 "all" is a window's width alone

    def forward(  # type: ignore[override]  # HF's order of arguments
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        per_layer_inputs: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        per_layer_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As DecoderModel. attention_mask may be HF's mapping of layer type -> mask (B, 1, S, K) or None.

        per_layer_inputs (B, S, layers, P): rows of the per-layer table beside inputs_embeds; without them they are
        looked up by `per_layer_ids` (B, S), else by the ids whose embeddings these are. mm_token_type_ids (B, S, or all
        tokens since the start): where images and videos are, whose tokens see each other if the config says "vision".
        logits_to_keep: an integer k > 0 lets layers that read shared keys compute the last k places only, as HF does;
        last_hidden_state then has these.

        Raises InputError for per_layer_inputs beside input_ids, and for embeddings that no id has.
        """
        kwargs.pop("return_shared_kv_states", None)
        if input_ids is not None and per_layer_inputs is not None:
            raise InputError(
                "per_layer_inputs go with inputs_embeds; with input_ids they are looked up: leave them out"
            )

        def extras(tokens: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
            added: dict[str, Tensor] = {}
            if mm_token_type_ids is not None and self.bidirectional == "vision":
                added[TYPES_OF_TOKENS] = _last_types(mm_token_type_ids, tokens).to(tokens.device)
            if not self.per_layer_width:
                return added
            if per_layer_inputs is not None:
                return added | {TOKENS: self._checked(per_layer_inputs, tokens).to(tokens.device, dtype)}
            ids = per_layer_ids
            if ids is None:
                ids = per_layer.ids_of_embeds(self.embed_tokens, tokens) if tokens.is_floating_point() else tokens
            return added | {IDS: ids.to(tokens.device)}

        mask: Any = attention_mask
        keep = logits_to_keep if isinstance(logits_to_keep, int) and _KEEPS else 0
        return self.run(input_ids, mask, position_ids, cache, inputs_embeds, use_cache, kwargs, extras, keep)

    def _checked(self, given: Tensor, tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:2], len(self.layers), self.per_layer_width)
        if tuple(given.shape) != shape:
            raise InputError(
                f"per_layer_inputs are {tuple(given.shape)}, expected {shape}: batch, tokens, layers, width"
            )
        return given

    def ids_of(self, embeds: Tensor, padding: Tensor, pad: int) -> Tensor:
        """The ids (B, S) of embeddings (B, S, D), `pad` where `padding` (B, S) is; see per_layer.ids_of_embeds."""
        table = self.embed_tokens
        row = table.float_rows(torch.tensor([pad], device=embeds.device, dtype=torch.int64))[0].to(embeds.dtype)
        return per_layer.ids_of_embeds(table, torch.where(padding[..., None], row, embeds)).masked_fill(padding, pad)

    # --- masks ---

    def masks(
        self,
        attention_mask: Any,
        embeds: Tensor,
        cache: Any,
        text_positions: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Mapping[str, AdditiveMask]:
        """As DecoderModel; `attention_mask` may be HF's mapping of layer type -> mask, where None is no mask at all.

        Raises InputError for a mapping without a type of layers that the model has.
        """
        types = (extras or {}).get(TYPES_OF_TOKENS)
        by_type = attention_mask if isinstance(attention_mask, Mapping) else None
        if by_type is not None:
            _check_types(by_type, [TYPES[variant] for variant in self.variants])
        found = {}
        for variant, window, layer in self._masked:
            given = attention_mask if by_type is None else by_type[TYPES[variant]]
            if by_type is not None and given is None and self._none_is_no_mask:
                found[variant] = no_mask(embeds, cache, layer)
                continue
            found[variant] = text_mask(
                given,
                embeds,
                cache,
                text_positions,
                window=window,
                layer=layer,
                causal=self.causal,
                blocks=None if types is None else visual_blocks(types, window, _length(cache)),
            )
        return found

    @property
    def _none_is_no_mask(self) -> bool:
        """HF's attention functions other than "eager" take None for a causal mask."""
        return getattr(self.config, "_attn_implementation", None) in (None, "eager")

    # --- the stack ---

    def enriched(self, hidden: Tensor, given: StackInputs) -> StackInputs:
        """With per-layer inputs (B, S, L, P), which are inputs of the graph of a stack."""
        if not self.per_layer_width:
            return given
        if INPUTS in given.extras:
            return given._replace(extras={INPUTS: self.q(INPUTS, given.extras[INPUTS])})
        tokens = given.extras.get(TOKENS)
        if tokens is None:
            tokens = per_layer.tokens_of_layers(self, given.extras[IDS])
        return given._replace(extras={INPUTS: per_layer.combine(self, hidden, tokens)})

    def layer_arguments(self, i: int, given: StackInputs) -> Mapping[str, Any]:
        layer = self.layer(i)
        assert isinstance(layer, QuantGemma4TextDecoderLayer), f"{type(layer).__name__} is no layer of Gemma4"
        inputs = given.extras.get(INPUTS)
        if inputs is not None:
            return {"per_layer_input": inputs[:, :, i, :], **layer.chosen(given)}
        own = {name: value for name, value in given.extras.items() if name == "per_layer_input"}
        return {**own, **layer.chosen(given)}

    def extra_inputs(self, profile: TextProfile) -> Mapping[str, TensorSpec]:
        if not self.per_layer_width:
            return {}
        places, dtype = (profile.batch_size, profile.seq_len), float_type(self)
        if profile.layer is not None:
            return {"per_layer_input": TensorSpec((*places, self.per_layer_width), dtype)}
        return {INPUTS: TensorSpec((*places, len(self.layers), self.per_layer_width), dtype)}

    def as_export_module(self, profile: TextProfile | per_layer.PerLayerProfile | TablePart) -> GraphAdapter:
        """As DecoderModel; or the graph of per-layer inputs with PerLayerProfile, a part of their table with
        TablePart."""
        if not isinstance(profile, per_layer.PerLayerProfile | TablePart):
            return super().as_export_module(profile)
        if not self.per_layer_width:
            raise ProfileError(
                f"the model has no per-layer embeddings, so there is no graph of {type(profile).__name__}"
            )
        if isinstance(profile, TablePart):
            return part_graph(self, profile)
        return per_layer.projection_graph(self, profile)


def visual_blocks(types: Tensor, window: int | None, past: int) -> Blocks | None:
    """Runs of visual tokens, as this release of transformers joins them: an image beside a video is one run.

    types (B, S): mm_token_type_ids of the new tokens; those before them are seen by all that follow anyway. None for
    layers that stay causal.
    """
    style = joined()
    if style != "all layers" and window is None:
        return None
    types = torch.nn.functional.pad(types, (past, 0))
    return Blocks(visual_runs(types), bounded=style == "within the window")


def _check_types(given: Mapping[str, Tensor | None], types: Sequence[str]) -> None:
    if absent := [name for name in types if name not in given]:
        raise InputError(
            f"attention_mask has masks for {', '.join(map(repr, given)) or 'no type of layers'}, and the model has "
            f"{', '.join(absent)} too: give one for each, None for no mask"
        )


def _last_types(given: Tensor, tokens: Tensor) -> Tensor:
    batch, length = tokens.shape[:2]
    if given.dim() != 2 or given.shape[0] not in (1, batch) or given.shape[1] < length:
        raise InputError(
            f"mm_token_type_ids are {tuple(given.shape)}, expected ({batch}, {length}), or with those before"
        )
    return given[:, -length:]


def _length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


class CappedCausalLM(CausalLM):
    """A head whose logits are soft-capped, where the config says so: cap * tanh(logits / cap). The cap is in the graph
    of the head, so that sampling over files is that of the model."""

    SITES = {"logits_by_cap": Role.ACTIVATION, "tanh": Role.TANH, "logits": Role.ACTIVATION}

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        return {} if fp.config.get_text_config().final_logit_softcapping is None else cls.SITES

    @property
    def text(self) -> QuantGemma4TextModel:
        assert isinstance(self.model, QuantGemma4TextModel), f"{type(self.model).__name__} is no Gemma4 text model"
        return self.model

    def scores(self, hidden: Tensor) -> Tensor:
        logits = super().scores(hidden)
        cap = self.text.config.final_logit_softcapping
        if cap is None:
            return logits
        by_cap = self.q("logits_by_cap", logits * (1.0 / float(cap)))
        return self.q("logits", self.q("tanh", torch.tanh(by_cap)) * float(cap))


@register(hf_class("Gemma4ForCausalLM"))
class QuantGemma4ForCausalLM(CappedCausalLM):
    """The text model with its head."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        per_layer_inputs: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As QuantGemma4TextModel -> HF's output class with logits (B, S or as many as logits_to_keep, vocabulary), and
        loss where labels (B, S) are given: next token, -100 ignored.

        logits_to_keep: the last so many, 0 for all, or the indices of places.
        """
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache": cache,
            "inputs_embeds": inputs_embeds,
            "per_layer_inputs": per_layer_inputs,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }
        return self.run(arguments, labels, logits_to_keep, kwargs)
