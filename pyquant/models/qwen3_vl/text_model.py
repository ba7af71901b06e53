# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's text model: embedding or embeddings in, hidden states out, with HF's calling convention.

It owns the order of things and the rotary tables. Layers are text.py, HF's arguments text_inputs.py and causal.py,
padded calibration batches rows.py, static graphs text_static.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from pyquant.errors import ProfileError
from pyquant.models.qwen3_vl.causal import padded_keys, text_mask
from pyquant.models.qwen3_vl.hf import hf_class
from pyquant.models.qwen3_vl.past import Past
from pyquant.models.qwen3_vl.rows import row_by_row
from pyquant.models.qwen3_vl.text import QuantQwen3VLTextDecoderLayer
from pyquant.models.qwen3_vl.text_inputs import dense_addends, positions_of, refuse_unsupported, tokens_of
from pyquant.models.qwen3_vl.text_static import GraphInputs, TextAdapter, TextProfile, require_text_profile
from pyquant.site import exporting
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.base import Phase, QModule, Role, WrapContext
from pyquant.wrap.registry import register
from pyquant.wrap.rotary import RotaryTables

TAPS = 3  # what every released Qwen3-VL has; a whole model says how many its vision tower really has


@register(hf_class("Qwen3VLTextRotaryEmbedding"))
class QuantQwen3VLTextRotaryEmbedding(QModule):
    """Interleaved multimodal rotary tables, computed by HF's own module. In static graphs they are inputs."""

    SITES = {"cos": Role.UNIT, "sin": Role.UNIT}

    @classmethod
    def site_roles(cls, fp: Any) -> Mapping[str, Role]:
        unit = float(fp.attention_scaling) <= 1  # YaRN scales the tables
        return dict.fromkeys(cls.SITES, Role.UNIT if unit else Role.ACTIVATION)

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.attention_scaling = float(fp.attention_scaling)
        lost = fp.inv_freq.is_meta  # its buffers are in no checkpoint
        with torch.device("cpu"):
            self.float_rotary = type(fp)(fp.config) if lost else copy.deepcopy(fp)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids (3, B, S), or (B, S) for all three axes -> (cos, sin), each (B, S, head_dim), in x's dtype."""
        cos, sin = self._float(x, position_ids)
        return self.q("cos", cos), self.q("sin", sin)

    def tables(self, x: Tensor, position_ids: Tensor) -> RotaryTables:
        """The same in the form of wrap.Rotary, and not yet on the grid."""
        return RotaryTables.of(self._float(x, position_ids), parts=1)

    def on_grid(self, tables: RotaryTables) -> RotaryTables:
        """`tables` through the sites; those of the layers then change nothing."""
        return RotaryTables(self.q("cos", tables.cos), self.q("sin", tables.signed_sin))

    def _float(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if position_ids.dim() == 2:
            position_ids = position_ids[None].expand(3, -1, -1)
        cos, sin = self.float_rotary(x, position_ids)
        return cos, sin

    def as_export_module(self, profile: Any) -> nn.Module:
        """Raises ProfileError: no graph computes the tables."""
        raise ProfileError(
            "the rotary tables are inputs of the static graphs, made by the host from the positions; export the text "
            "model or a layer with qwen3_vl.TextProfile"
        )


@register(hf_class("Qwen3VLTextModel"))
class QuantQwen3VLTextModel(QModule):
    """The stack of decoder layers, with visual features added after the first of them (deepstack).

    `inputs_embeds` is what enters the stack. After layer k < taps, `deepstack_{k}` is the dense addend of layer k
    (zero at text tokens) and `deepstack_out_{k}` the hidden states from there on, also where nothing was added, so that
    calls with and without images are the same arithmetic.
    """

    CHILDREN = ("embed_tokens", "layers", "norm", "rotary_emb")
    SITES = {"inputs_embeds": Role.ACTIVATION}

    embed_tokens: QModule
    layers: nn.ModuleList
    norm: QModule
    rotary_emb: QuantQwen3VLTextRotaryEmbedding

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.taps = 0
        self.set_taps(min(TAPS, len(self.layers)))

    def set_taps(self, taps: int) -> None:
        """How many layers have a deepstack addend. The wrapper of a whole model calls it, while the tree is built."""
        assert 0 <= taps <= len(self.layers), f"{taps} deepstack features for {len(self.layers)} layers"
        for k in range(taps, self.taps):
            del self.sites[f"deepstack_{k}"], self.sites[f"deepstack_out_{k}"]
        for k in range(self.taps, taps):
            self.add_site(f"deepstack_{k}", Role.ACTIVATION)
            self.add_site(f"deepstack_out_{k}", Role.ACTIVATION)
        self.taps = taps

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids (B, S) or inputs_embeds (B, S, D) -> last_hidden_state (B, S, D), past_key_values.

        attention_mask: see causal.text_mask. position_ids: (B, S), (3, B, S), or (4, B, S) whose first row are the text
        positions; None counts on from the cache. visual_pos_masks (B, S) bool says where the rows of each
        deepstack_visual_embeds[k] (visual tokens, D) are added, after layer k.

        While calibrating, rows of a batch that a 2-D mask pads run one by one without their padding; the outputs and
        the cache hold zeros there. Raises InputError for inputs that contradict each other.
        """
        refuse_unsupported(kwargs, self.config)
        tokens = tokens_of(input_ids, inputs_embeds)
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False)) and not exporting()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        cache = past_key_values
        past = 0 if cache is None else cache.get_seq_length()
        positions, text_positions = positions_of(position_ids, tokens, past)
        size, dtype = self.config.hidden_size, _float_type(tokens, self.norm)
        where = None if visual_pos_masks is None else visual_pos_masks.to(tokens.device)
        addends = dense_addends(where, deepstack_visual_embeds, (*tokens.shape[:2], size), dtype, self.taps)
        observing = self.phase is Phase.CALIBRATE and not exporting()
        valid = padded_keys(attention_mask, tokens, cache) if observing else None
        if valid is None:
            embeds = self._embed(tokens)
            mask = text_mask(attention_mask, embeds, cache, text_positions)
            hidden = self.norm(self.stack(embeds, self.rotary_emb.tables(embeds, positions), mask, cache, addends))
        else:
            hidden = row_by_row(self._row, tokens, valid, positions, cache, addends)
        out = BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)
        as_object = kwargs.get("return_dict")
        return out if as_object is None or as_object else out.to_tuple()

    def _embed(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        return embeds

    def _row(self, tokens: Tensor, positions: Tensor, past: Past, addends: Sequence[Tensor]) -> Tensor:
        embeds = self._embed(tokens)
        tables, mask = self.rotary_emb.tables(embeds, positions), text_mask(None, embeds, past)
        out: Tensor = self.norm(self.stack(embeds, tables, mask, past, addends))
        return out

    def stack(
        self,
        inputs_embeds: Tensor,
        tables: RotaryTables,
        mask: AdditiveMask,
        cache: Any = None,
        addends: Sequence[Tensor] = (),
        *,
        per_head: bool = False,
    ) -> Tensor:
        """(B, S, D) -> (B, S, D) before the final norm; tables as `rotary_emb.tables` makes them, addends dense."""
        tables = self.rotary_emb.on_grid(tables)
        hidden = self.q("inputs_embeds", inputs_embeds)
        for i in range(len(self.layers)):
            addend = addends[i] if i < len(addends) else None
            hidden = self.step(i, hidden, tables, mask, cache, addend, per_head=per_head)
        return hidden

    def step(
        self,
        i: int,
        hidden: Tensor,
        tables: RotaryTables,
        mask: AdditiveMask,
        cache: Any,
        addend: Tensor | None,
        *,
        per_head: bool = False,
    ) -> Tensor:
        """Layer i and what follows it."""
        layer = self.layers[i]
        assert isinstance(layer, QuantQwen3VLTextDecoderLayer)
        hidden = layer(hidden, tables, mask, past_key_values=cache, per_head=per_head)
        if i >= self.taps:
            return hidden
        if addend is not None:
            hidden = hidden + self.q(f"deepstack_{i}", addend)
        return self.q(f"deepstack_out_{i}", hidden)

    def as_export_module(self, profile: TextProfile) -> TextAdapter:  # type: ignore[override]
        """The stack, or one layer with the deepstack addend that follows it; names and shapes are TextProfile's.

        Raises ProfileError for a profile that contradicts the model.
        """
        require_text_profile(profile, self)
        if profile.layer is None:
            return TextAdapter(
                self,
                profile,
                _stack,
                first="inputs_embeds",
                output="hidden_states",
                attentions=[layer.self_attn for layer in self.layers],
                taps=self.taps,
                many=True,
            )
        if profile.layer >= len(self.layers):
            raise ProfileError(f"TextProfile.layer is {profile.layer}, but the model has {len(self.layers)} layers")
        return TextAdapter(
            self,
            profile,
            _LayerOf(profile.layer),
            first="hidden_states",
            output="hidden_states_out",
            attentions=[self.layers[profile.layer].self_attn],
            taps=self.taps,
            layer=profile.layer,
        )


def _stack(model: Any, given: GraphInputs) -> Tensor:
    out: Tensor = model.stack(
        given.hidden, given.tables, given.mask, given.past, given.addends, per_head=given.per_head
    )
    return out


class _LayerOf:
    """Layer i of the stack, with what comes before the first one and after each."""

    def __init__(self, i: int) -> None:
        self.i = i

    def __call__(self, model: Any, given: GraphInputs) -> Tensor:
        hidden = model.q("inputs_embeds", given.hidden) if self.i == 0 else given.hidden
        addend = given.addends[0] if given.addends else None
        tables = model.rotary_emb.on_grid(given.tables)
        out: Tensor = model.step(self.i, hidden, tables, given.mask, given.past, addend, per_head=given.per_head)
        return out


def _float_type(tokens: Tensor, norm: QModule) -> torch.dtype:
    return tokens.dtype if tokens.is_floating_point() else next(norm.parameters()).dtype
