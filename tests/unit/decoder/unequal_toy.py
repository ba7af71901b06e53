# SPDX-License-Identifier: Apache-2.0
"""A model of transformers' kind whose layers are unequal, in plain torch, and its wrappers over pyquant.decoder.

Layers are of two variants (sliding window, full) with own head sizes, KV heads and rotary tables; some own no keys and
read those of an earlier layer. It owns the model; what is compared is test_unequal_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import pyquant
from pyquant import models
from pyquant.decoder.bundle import BundleParts
from pyquant.decoder.causal_lm import TextCausalLM
from pyquant.decoder.kind import LayerKind
from pyquant.decoder.layers import DecoderAttention, DecoderLayer
from pyquant.decoder.model import DecoderModel, DecoderRotary
from pyquant.decoder.profile import DecoderProfile
from pyquant.models.example import randomize_
from pyquant.wrap import QModule
from pyquant.wrap.hf import cache_of, make_output, take_cache
from pyquant.wrap.registry import register

torch.set_num_threads(1)

VOCAB, EOS, PAD, WINDOW = 40, 38, 39, 4
SLIDING, FULL = "sliding_attention", "full_attention"
LAYERS = (SLIDING, FULL, SLIDING, FULL, FULL, SLIDING)
SHARES = (None, None, 0, None, 3, 0)
HEADS = 4
KV_HEADS = {SLIDING: 2, FULL: 1}
HEAD_DIM = {SLIDING: 8, FULL: 12}
THETA = {SLIDING: 10.0, FULL: 300.0}
NAMES = {SLIDING: "sliding", FULL: "full"}


class ToyConfig(PretrainedConfig):
    model_type = "pyquant_toy_unequal"

    def __init__(self, **more: Any) -> None:
        self.vocab_size, self.hidden_size, self.max_position_embeddings = VOCAB, 24, 64
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = len(LAYERS), HEADS, 2
        self.layer_types, self.sliding_window, self.use_cache = list(LAYERS), WINDOW, True
        super().__init__(**{"eos_token_id": EOS, "pad_token_id": PAD, **more})


class ToyRotary(nn.Module):
    """cos and sin of one variant; its frequencies are in no checkpoint."""

    def __init__(self, config: Any, variant: str) -> None:
        super().__init__()
        self.config, self.attention_scaling = config, 1.0
        half = HEAD_DIM[variant] // 2
        self.register_buffer("inv_freq", THETA[variant] ** -(torch.arange(half) / half), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, S, head_dim), each half turned against the other."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


class ToyAttention(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.variant = config, layer_idx, LAYERS[layer_idx]
        self.head_dim = HEAD_DIM[self.variant]
        self.scaling = self.head_dim**-0.5
        width, kv = config.hidden_size, KV_HEADS[self.variant] * self.head_dim
        self.q_proj = nn.Linear(width, HEADS * self.head_dim, bias=False)
        if SHARES[layer_idx] is None:
            self.k_proj, self.v_proj = nn.Linear(width, kv, bias=False), nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(HEADS * self.head_dim, width, bias=False)

    def forward(self, x: Tensor, tables: Any, mask: Tensor, cache: Any, shared: dict[int, Any]) -> Tensor:
        batch, length = x.shape[:2]

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.head_dim).transpose(1, 2)

        query, source = turned(heads(self.q_proj(x)), *tables), SHARES[self.layer_idx]
        if source is None:
            key, value = turned(heads(self.k_proj(x)), *tables), heads(self.v_proj(x))
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
            shared[self.layer_idx] = (key, value)
        else:
            key, value = shared[source]
        key, value = (t.repeat_interleave(HEADS // t.shape[1], dim=1) for t in (key, value))
        weights = (query @ key.transpose(2, 3) * self.scaling + mask).softmax(dim=-1)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(batch, length, -1))


class ToyLayer(nn.Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        own = LlamaConfig(hidden_size=config.hidden_size, intermediate_size=32, num_attention_heads=HEADS)
        self.self_attn, self.mlp = ToyAttention(config, layer_idx), LlamaMLP(own)
        self.input_layernorm, self.post_attention_layernorm = (LlamaRMSNorm(config.hidden_size) for _ in range(2))

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *given)
        return x + self.mlp(self.post_attention_layernorm(x))


def mask_of(valid: Tensor, at: Tensor, first: int, keys: int, window: int | None) -> Tensor:
    """(B, 1, Q, K), written out element by element: valid (B, all keys), queries at `at`, keys from `first` on."""
    mask = torch.full((len(valid), 1, len(at), keys), torch.finfo(torch.float32).min)
    for row in range(len(valid)):
        for i, query in enumerate(at.tolist()):
            for k in range(keys):
                key = first + k
                near = window is None or query - key < window
                if key <= query and near and key < valid.shape[1] and valid[row, key]:
                    mask[row, 0, i, k] = 0
    return mask


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ToyLayer(config, i) for i in range(len(LAYERS)))
        self.norm = LlamaRMSNorm(config.hidden_size)
        self.rotary_emb, self.rotary_emb_local = ToyRotary(config, FULL), ToyRotary(config, SLIDING)
        self.post_init()

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
        cache = take_cache(cache, kwargs)
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        past = 0 if cache is None else int(cache.get_seq_length())
        batch, length = hidden.shape[:2]
        at = torch.arange(past, past + length)
        valid = torch.ones(batch, past + length) if attention_mask is None else attention_mask
        positions = at[None].expand(batch, -1) if position_ids is None else position_ids
        tables = {v: r(hidden, positions) for v, r in ((FULL, self.rotary_emb), (SLIDING, self.rotary_emb_local))}
        sizes = {v: (length, 0) if cache is None else cache.get_mask_sizes(length, LAYERS.index(v)) for v in NAMES}
        masks = {
            v: mask_of(valid != 0, at, first, keys, WINDOW if v == SLIDING else None)
            for v, (keys, first) in sizes.items()
        }
        shared: dict[int, Any] = {}
        for variant, layer in zip(LAYERS, self.layers, strict=True):
            hidden = layer(hidden, tables[variant], masks[variant], cache, shared)
        return make_output(BaseModelOutputWithPast, last_hidden_state=self.norm(hidden), cache=cache)


class ToyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = ToyConfig
    base_model_prefix = "model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model, self.lm_head = ToyModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Any:
        cache = take_cache(cache, kwargs)
        out = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self.lm_head(out.last_hidden_state[:, kept])
        return make_output(CausalLMOutputWithPast, logits=logits, cache=cache_of(out))


# --- the wrappers ---

models.by_name("llama")  # registers the norm and the MLP


@register(ToyRotary)
class QuantToyRotary(DecoderRotary):
    """The tables of one variant."""


@register(ToyAttention)
class QuantToyAttention(DecoderAttention):
    """Attention of either variant."""

    @classmethod
    def layer_kind(cls, fp: Any) -> LayerKind:
        window = WINDOW if fp.variant == SLIDING else None
        variant = NAMES[fp.variant]
        return LayerKind(KV_HEADS[fp.variant], fp.head_dim, window, SHARES[fp.layer_idx], variant)

    @classmethod
    def rotary_scaling(cls, fp: Any) -> float:
        return 1.0


@register(ToyLayer)
class QuantToyLayer(DecoderLayer):
    """A layer of either variant."""


@register(ToyModel)
class QuantToyModel(DecoderModel):
    """Two rotary modules, one for each variant."""

    CHILDREN = (*DecoderModel.CHILDREN, "rotary_emb_local")

    rotary_emb_local: DecoderRotary

    def rotary_of(self, variant: str) -> DecoderRotary:
        return self.rotary_emb_local if variant == "sliding" else self.rotary_emb


@register(ToyForCausalLM)
class QuantToyForCausalLM(TextCausalLM):
    """The model with its head."""


class ToyParts(BundleParts):
    FAMILY = "toy"
    MODELS = (QuantToyForCausalLM, QuantToyModel)


@dataclass(frozen=True)
class ToyProfile(DecoderProfile):
    PARTS = ToyParts


# --- building ---


def model() -> ToyForCausalLM:
    config = ToyConfig()
    config._attn_implementation = "eager"
    return randomize_(ToyForCausalLM(config)).eval()  # type: ignore[return-value]


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, EOS, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: tuple[int, ...], side: str = "left") -> dict[str, Tensor]:
    """Rows of unequal length: input_ids and attention_mask (B, longest)."""
    longest = max(lengths)
    given, mask = torch.full((len(lengths), longest), PAD), torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        own = slice(longest - length, None) if side == "left" else slice(length)
        given[row, own], mask[row, own] = ids(length, seed=row), 1
    return {"input_ids": given, "attention_mask": mask}


def converted(fp: nn.Module, batches: list[Mapping[str, Tensor]], preset: str = "w8a16") -> QModule:
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return q
