# SPDX-License-Identifier: Apache-2.0
"""Chunked local attention with relative positions and a soft-cap, as Gemma4's audio tower has it.

It owns the arithmetic and what of it is constant: the relative keys and the scales. Blocks and contexts are chunks.py,
the mask mask.py.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.errors import InputError, ProfileError, UnknownModuleError
from pyquant.models.gemma4.audio.adapter import layer_graph
from pyquant.models.gemma4.audio.chunks import Chunks
from pyquant.models.gemma4.audio.mask import blocked
from pyquant.models.gemma4.audio.profiles import AudioProfile
from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.attention import AdditiveMask, AttentionCore
from pyquant.wrap.base import QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register
from pyquant.wrap.snapshot import Snapshot

_EXP = 104.0  # exp(-104) is 0 in float32


@register(hf_class("Gemma4AudioRelPositionalEncoding"))
class QuantGemma4AudioRelPositionalEncoding(QModule):
    """Sines and cosines of distances, computed by HF's own module. In static graphs they are folded into constants."""

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        lost = fp.inv_timescales.is_meta  # its buffer is in no checkpoint
        self.float_positions = _positions_again(fp) if lost else copy.deepcopy(fp)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Any (..., D) -> (1, positions, D), in its type."""
        out: Tensor = self.float_positions(hidden_states)
        return out

    def as_export_module(self, profile: Any) -> GraphAdapter:
        """Raises ProfileError: no graph computes them."""
        raise ProfileError(
            "the relative positions are a constant of the attention's graph; export the audio model, a layer or its "
            "attention with gemma4.AudioProfile(length)"
        )


class LocalAttentionCore(AttentionCore):
    """softmax(cap * tanh(query @ key^T + shift(query @ relative_key)) + mask) @ value, in blocks.

    The division by the cap is in the query, so that what tanh gets are logits in units of the cap.
    """

    SITES = {
        **AttentionCore.SITES,
        "relative_logits": Role.ACTIVATION,
        "all_logits": Role.ACTIVATION,
        "tanh": Role.TANH,
        "capped_logits": Role.ACTIVATION,
    }

    def __init__(self, ctx: WrapContext, chunks: Chunks, cap: float) -> None:
        super().__init__(ctx)
        self.chunks, self.cap = chunks, cap

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, relative_key: Tensor, mask: AdditiveMask | None
    ) -> tuple[Tensor, Tensor]:
        """query (H, blocks * size, D), key and value (H, blocks, context, D), relative_key (H, D, positions) -> output
        (H, blocks, size, D), probabilities (H, blocks, size, context). Blocks are those of all clips of a batch."""
        heads, rows, _ = query.shape
        blocks = (heads, rows // self.chunks.size, self.chunks.size)
        logits = self.q("logits", torch.matmul(query.reshape(*blocks, -1), key.transpose(-1, -2)))
        relative = self.q("relative_logits", torch.matmul(query, relative_key))
        logits = self.q("all_logits", logits + self.chunks.shift(relative.reshape(*blocks, -1)))
        logits = self.q("capped_logits", self.q("tanh", torch.tanh(logits)) * self.cap)
        if mask is None:
            self._foresee_mask(logits)
        else:
            logits = self._add_mask(logits, mask.values, (*blocks, self.chunks.context))
        probs = self.q("probs", torch.softmax(logits, dim=-1))
        return self.q("attn_out", torch.matmul(probs, value)), probs


@register(hf_class("Gemma4AudioAttention"))
class QuantGemma4AudioAttention(QModule):
    """Attention of each block of tokens to itself and some tokens before it.

    Three factors of HF's are constants of the model, and one here: `query_scale` (per element of a head, and the factor
    of the keys, and one over the soft-cap). So are the relative keys, the product of relative_k_proj and the positions.
    """

    CHILDREN = ("q_proj", "k_proj", "v_proj", "post")
    SITES = {
        "act_in": Role.ACTIVATION,
        "query_scale": Role.CONSTANT,
        "query": Role.ACTIVATION,
        "relative_key": Role.CONSTANT,
    }

    q_proj: QModule
    k_proj: QModule
    v_proj: QModule
    post: QModule
    positions: Tensor
    query_scale: Tensor
    relative_key: Tensor

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.chunks = Chunks.of(fp.config)
        self.num_heads, self.head_dim = int(fp.num_heads), int(fp.head_dim)
        self.cap = float(fp.config.attention_logit_cap)
        self.q_factor, self.k_factor = float(fp.q_scale), float(fp.k_scale)
        _far_enough(fp.config, ctx)
        self.compute_constants(fp)
        self.snapshot = Snapshot.of(fp, ctx.path, fp.relative_k_proj.weight, fp.per_dim_scale)
        self.core = LocalAttentionCore(ctx.child("core"), self.chunks, self.cap)

    @torch.inference_mode(False)
    @torch.no_grad()
    def compute_constants(self, fp: Any, inv_timescales: Tensor | None = None) -> None:
        """query_scale (H * hd,) and relative_key (H, hd, positions). inv_timescales: of the model's positions
        (rounded in a model of bfloat16); without them, those of the config.

        The factor of the keys is in the query, and so the relative keys, which have none, are divided by it.
        """
        weight = fp.relative_k_proj.weight
        self.register_buffer("positions", self._positions(weight, inv_timescales))
        scale = F.softplus(fp.per_dim_scale.float()) * (self.q_factor * self.k_factor / self.cap)
        self.register_buffer("query_scale", scale.repeat(self.num_heads))
        keys = F.linear(self.positions, weight).float() / self.k_factor
        keys = keys.reshape(-1, self.num_heads, self.head_dim).permute(1, 2, 0).contiguous()
        self.register_buffer("relative_key", keys)

    def _positions(self, weight: Tensor, inv_timescales: Tensor | None) -> Tensor:
        """(positions, D) in the type and on the device of `weight`, by HF's own module."""
        encoding = _positions_of(self.config, hf_class("Gemma4AudioRelPositionalEncoding"), weight.shape[1])
        if inv_timescales is not None and not inv_timescales.is_meta:
            encoding.inv_timescales = inv_timescales
        like = torch.empty(0, dtype=weight.dtype, device=encoding.inv_timescales.device)
        found: Tensor = encoding(like)[0].detach().to(weight.device)
        return found

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None = None,
        attention_mask: Tensor | AdditiveMask | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B, S, D) -> (B, S, D), probabilities (B, H, blocks, size, context).

        position_embeddings are compared with those of the config, which the constants are made of; InputError for
        others. attention_mask: (B, 1, blocks, size, context) as HF's audio model makes it, or an AdditiveMask.
        """
        self._require_positions(position_embeddings)
        mask = blocked(attention_mask, self.cap)
        batch, length, width = hidden_states.shape
        x = self.q("act_in", hidden_states)
        query = as_float32(self.q_proj(x)) * self.const("query_scale", self.query_scale)
        query = self.chunks.blocks(self.q("query", query)).reshape(-1, self.num_heads, self.head_dim).transpose(0, 1)
        key, value = (self._contexts(as_float32(project(x))) for project in (self.k_proj, self.v_proj))
        out, probs = self.core.attend(query, key, value, self.const("relative_key", self.relative_key), mask)
        out = out.reshape(query.shape).transpose(0, 1).reshape(batch, -1, width)[:, :length]
        by_clip = probs.reshape(self.num_heads, batch, -1, *probs.shape[2:]).transpose(0, 1)
        return self.post(as_dtype(out, hidden_states.dtype)), by_clip

    def _contexts(self, x: Tensor) -> Tensor:
        """(B, S, H * hd) -> (H, B * blocks, context, hd)."""
        seen = self.chunks.contexts(x).reshape(-1, self.chunks.context, self.num_heads, self.head_dim)
        return seen.permute(2, 0, 1, 3)

    def _require_positions(self, given: Tensor | None) -> None:
        if given is None or given.is_meta or torch.compiler.is_compiling():
            return
        own = self.positions.to(given.dtype)
        close = 1e-5 if given.dtype == torch.float32 else 5e-2  # of timescales that were rounded too
        if given.shape[-2:] != own.shape or not torch.allclose(given, own.to(given.device), atol=close):
            raise InputError(
                f"position_embeddings {tuple(given.shape)} are not those of the config, {tuple(own.shape)}, which the "
                f"relative keys of {self.path or 'this attention'} are made of; give those of "
                "Gemma4AudioRelPositionalEncoding, or none"
            )

    def as_export_module(self, profile: AudioProfile) -> GraphAdapter:
        """hidden_states (B, S, D), attention_mask (1, B * blocks, size, context) -> attn_output, for one `profile`."""
        return layer_graph(self, profile, self.chunks, int(self.config.hidden_size), "gemma4_audio_attention")


def _positions_of(config: Any, cls: type[Any], hidden_size: int) -> Any:
    """HF's module, with values even where the model has none."""
    assert int(config.hidden_size) == hidden_size, "positions are as wide as the model"
    with torch.device("cpu"):
        return cls(config)


def _positions_again(fp: Any) -> Any:
    """HF's module `fp` with values, from the two numbers that are left of its config where it keeps none (5.24)."""
    if (config := getattr(fp, "config", None)) is None:
        config = SimpleNamespace(
            hidden_size=fp.hidden_size,
            attention_chunk_size=fp.context_size,  # the sum of the three, less one
            attention_context_left=1,
            attention_context_right=0,
        )
    return _positions_of(config, type(fp), fp.hidden_size)


def _far_enough(config: Any, ctx: WrapContext) -> None:
    """Raise UnknownModuleError for a fill that leaves a masked key some weight: a mask that is added has none."""
    fill, cap = float(config.attention_invalid_logits_value), float(config.attention_logit_cap)
    if not math.isfinite(cap) or cap <= 0 or fill > -cap - _EXP:
        raise UnknownModuleError(
            f"{ctx.path or 'the model'}: attention_invalid_logits_value={fill:g} beside attention_logit_cap={cap:g} "
            f"has no wrapper; a positive cap and a fill below {-cap - _EXP:g} do (the checkpoints have -1e9 and 50)"
        )
