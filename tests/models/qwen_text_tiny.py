# SPDX-License-Identifier: Apache-2.0
"""Tiny Qwen3-VL text models with nothing left at ones or zeros, and one table of every wrapper with its inputs.

It owns building; what holds for every case is test_qwen_text_wrappers.py, what is particular is in the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.qwen3_vl import modeling_qwen3_vl as hf
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig

import pyquant
from pyquant.models.qwen3_vl import TextProfile
from pyquant.wrap import QModule
from pyquant.wrap.attention import FILL

torch.set_num_threads(1)

D, HEAD_DIM, VOCAB, TAPS = 24, 16, 61, 3
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,  # not hidden_size / num_attention_heads
    "max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "mrope_section": [4, 3, 1],  # of HEAD_DIM / 2, uneven
        "mrope_interleaved": True,
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "num_hidden_layers": 2},
    "no_groups": {"num_key_value_heads": 4, "num_hidden_layers": 2},
    "one_kv_head": {"num_key_value_heads": 1, "num_hidden_layers": 2},
    "more_layers_than_taps": {"num_hidden_layers": 4},
}


def config(**overrides: Any) -> Qwen3VLTextConfig:
    result = Qwen3VLTextConfig(**{**BASE, **overrides})
    result._attn_implementation = "eager"
    return result


@torch.no_grad()
def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random: transformers' ones and zeros hide omissions."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.4 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(1 + 0.3 * noise)
        else:
            parameter.copy_(noise * (0.7 if "embed" in name else parameter.shape[-1] ** -0.5))
    return module.eval()


def text(**overrides: Any) -> hf.Qwen3VLTextModel:
    return randomized(hf.Qwen3VLTextModel(config(**overrides)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Batch:
    """Lengths of the rows, all padded to the longest on one side."""

    lengths: tuple[int, ...]
    side: str = "right"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), max(self.lengths)

    @property
    def valid(self) -> Tensor:
        """(B, S) bool."""
        longest = max(self.lengths)
        ends = torch.tensor(self.lengths)[:, None]
        at = torch.arange(longest)[None]
        return at < ends if self.side == "right" else at >= longest - ends

    @property
    def mask(self) -> Tensor | None:
        """The 2-D attention mask of a tokenizer, where there is padding."""
        return None if bool(self.valid.all()) else self.valid.long()

    @property
    def positions(self) -> Tensor:
        """(3, B, S): a text, then a 'picture' whose three axes differ, then text; they count valid tokens only."""
        rows, longest = self.shape
        ids = torch.zeros(3, rows, longest, dtype=torch.int64)
        for row in range(rows):
            n = int(self.valid[row].sum())
            line = torch.arange(n)
            axes = torch.stack([line, line, line])
            axes[:, 2:6] = torch.tensor([[2, 2, 2, 2], [2, 2, 3, 3], [2, 3, 2, 3]])[:, : max(0, n - 2)]
            axes[:, 6:] -= 2
            ids[:, row, self.valid[row]] = axes
        return ids

    @property
    def visual(self) -> Tensor:
        """(B, S) bool: tokens 2 to 5 of each row's valid ones, of which the last row has but one."""
        where = torch.zeros(self.shape, dtype=torch.bool)
        for row in range(self.shape[0]):
            at = torch.nonzero(self.valid[row])[2:6, 0]
            where[row, at[:1] if row == self.shape[0] - 1 and row else at] = True
        return where


BATCHES: dict[str, Batch] = {
    "one": Batch((9,)),
    "two": Batch((7, 7)),
    "right": Batch((8, 5)),
    "left": Batch((5, 8, 3), "left"),
}

Inputs = dict[str, Any]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states(batch: Batch, seed: int = 2) -> Tensor:
    return randn(*batch.shape, D, seed=seed)


def token_ids(batch: Batch, seed: int = 3) -> Tensor:
    return torch.randint(1, VOCAB, batch.shape, generator=torch.Generator().manual_seed(seed))


def features(batch: Batch, taps: int = TAPS, seed: int = 4) -> list[Tensor]:
    """One (visual tokens, D) for each tap, each of another size."""
    return [randn(int(batch.visual.sum()), D, seed=seed + k) * (1 + k) for k in range(taps)]


def rotary(batch: Batch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return hf.Qwen3VLTextRotaryEmbedding(config())(torch.empty(0, dtype=dtype), batch.positions)


def causal(batch: Batch, past: int = 0, valid: Tensor | None = None) -> Tensor:
    """(B, past + S keys) valid -> float mask (B, 1, S, keys) of 0 and FILL, written out element by element."""
    rows, tokens = batch.shape
    valid = batch.valid if valid is None else valid
    mask = torch.full((rows, 1, tokens, past + tokens), FILL)
    for row in range(rows):
        for query in range(tokens):
            for key in range(past + query + 1):
                if valid[row, key]:
                    mask[row, 0, query, key] = 0
    return mask


def _layer(fp: nn.Module, batch: Batch) -> Inputs:
    mask = causal(batch).masked_fill(causal(batch) < 0, torch.finfo(torch.float32).min)
    return {"hidden_states": states(batch), "position_embeddings": rotary(batch), "attention_mask": mask}


def _ids(fp: nn.Module, batch: Batch) -> Inputs:
    return {"input_ids": token_ids(batch), "attention_mask": batch.mask, "position_ids": batch.positions}


def deepstacked(batch: Batch) -> Inputs:
    """Embeddings, three kinds of positions, and deepstack features at the visual ones."""
    return {
        "inputs_embeds": states(batch),
        "attention_mask": batch.mask,
        "position_ids": batch.positions,
        "visual_pos_masks": batch.visual,
        "deepstack_visual_embeds": features(batch),
    }


def _model(fp: Any, batch: Batch) -> Inputs:
    taps = min(TAPS, len(fp.layers))
    return {**deepstacked(batch), "deepstack_visual_embeds": features(batch, taps)}


@dataclass(frozen=True)
class Case:
    """One wrapper: its float module, keyword inputs per batch, and what of the output counts."""

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, Batch], Inputs]
    first: str = "hidden_states"
    unused: tuple[str, ...] = ()  # sites that these inputs do not reach
    pick: Callable[[Any], Tensor] = lambda out: out if isinstance(out, Tensor) else out[0]


EMBEDDED = ("embed_tokens:act_out",)
TEXT_ONLY = (":deepstack_?",)


def _part(path: str, **overrides: Any) -> Callable[[], nn.Module]:
    return lambda: text(**overrides).get_submodule(path)


def _attention(path: str = "layers.1.self_attn", **overrides: Any) -> Callable[[], nn.Module]:
    return _part(path, **overrides)


# Wrappers that a TextProfile exports.
STATIC: dict[str, Case] = {
    "attention": Case(_attention(), _layer),
    "attention_biases": Case(_attention(attention_bias=True), _layer),
    "attention_one_kv_head": Case(_attention(num_key_value_heads=1), _layer),
    "decoder_layer": Case(_part("layers.1"), _layer),
    "decoder_layer_biases": Case(_part("layers.1", attention_bias=True), _layer),
    **{f"model_{name}": Case(lambda o=o: text(**o), _model, "inputs_embeds", EMBEDDED) for name, o in CONFIGS.items()},
}
# Wrappers without anything that depends on positions: any shape, an ExportProfile.
PLAIN: dict[str, Case] = {
    "rms_norm": Case(_part("layers.1.input_layernorm"), lambda fp, batch: {"hidden_states": states(batch)}),
    "head_norm": Case(
        _part("layers.1.self_attn.q_norm"),
        lambda fp, batch: {"hidden_states": randn(*batch.shape, 4, HEAD_DIM, seed=5)},
    ),
    "mlp": Case(_part("layers.1.mlp"), lambda fp, batch: {"x": states(batch)}, "x"),
}
# No static graph: ids are embedded, and tables made, outside of the stack.
EAGER: dict[str, Case] = {
    "rotary": Case(
        lambda: hf.Qwen3VLTextRotaryEmbedding(config()),
        lambda fp, batch: {"x": torch.empty(0), "position_ids": batch.positions},
        pick=lambda out: torch.cat([*out], dim=-1),
    ),
    "model_ids": Case(text, _ids, "input_ids", TEXT_ONLY),
}
CASES = {**STATIC, **PLAIN, **EAGER}


# --- static graphs ---


def profile_of(name: str, batch: Batch, **more: Any) -> TextProfile:
    taps = 0 if not name.startswith("model") else min(TAPS, {**BASE, **CONFIGS[name[6:]]}["num_hidden_layers"])
    return TextProfile(*batch.shape, **{"deepstack": taps, **more})


def signed(sin: Tensor) -> Tensor:
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def graph_inputs(given: Inputs, batch: Batch) -> dict[str, Tensor]:
    """What the host makes of eager inputs: the tensors of a prefill graph by name, each written out here."""
    cos, sin = given.get("position_embeddings") or rotary(batch)
    tensors = {}
    if "inputs_embeds" in given:
        tensors["inputs_embeds"] = given["inputs_embeds"]
        for k, feature in enumerate(given["deepstack_visual_embeds"]):
            dense = torch.zeros(*batch.shape, D)
            for number, (row, column) in enumerate(torch.nonzero(batch.visual).tolist()):
                dense[row, column] = feature[number]
            tensors[f"deepstack_{k}"] = dense
    else:
        tensors["hidden_states"] = given["hidden_states"]
    return {**tensors, "attention_mask": causal(batch), "cos": cos, "signed_sin": signed(sin)}


def converted(fp: nn.Module, batches: list[Inputs], preset: str = "w8a16", unused: tuple[str, ...] = ()) -> QModule:
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q, unused=unused)
    return q


def cache_of(fp: Any) -> DynamicCache:
    return DynamicCache(config=fp.config)


# --- comparing ---


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    worst = float((actual.double() - expected.double()).abs().max()) / float(expected.double().abs().max())
    assert worst <= tolerance, f"off by {worst:.2e} of the largest value"
