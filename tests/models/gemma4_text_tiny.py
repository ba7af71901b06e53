# SPDX-License-Identifier: Apache-2.0
"""Tiny Gemma4 text models with every parameter and buffer at random, in the forms that released ones have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM, Gemma4TextModel

from pyquant.models.example import randomize_

torch.set_num_threads(1)

S, F = "sliding_attention", "full_attention"
VOCAB, WINDOW = 40, 5
#: name -> what differs from E2B's form: shared keys, per-layer inputs, double-wide MLP, soft-cap.
FORMS: dict[str, dict[str, Any]] = {
    "e2b": {},
    "no_ple": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False},
    "k_eq_v": {
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "num_key_value_heads": 2,
        "final_logit_softcapping": None,
    },
    "all": {"use_bidirectional_attention": "all", "sliding_window": 6, "num_kv_shared_layers": 0},
    "vision": {"use_bidirectional_attention": "vision"},
    "experts": {
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 10,
    },
    "biased": {"attention_bias": True, "num_key_value_heads": 4},
}


def text_config(form: str = "e2b", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "layer_types": [S, S, F, S, S, S, F],
        "num_kv_shared_layers": 3,
        "sliding_window": WINDOW,
        "hidden_size_per_layer_input": 6,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 3.0,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "rope_parameters": {
            S: {"rope_type": "default", "rope_theta": 100.0},
            F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000.0},
        },
    }
    config: Any = Gemma4TextConfig(**{**settings, **FORMS[form], **changes})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # 5.18's default multiplies in groups, of widths that are multiples of 16
    return config


@torch.no_grad()
def randomized(model: nn.Module, seed: int = 3) -> Any:
    """Also what is no parameter: layer_scalar. Norms of queries and keys are kept small, as logits are not scaled."""
    randomize_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.mul_(0.5)
        elif "layers" in name and ".post_" in name:  # keep the residual stream larger than what is added to it
            parameter.mul_(0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.copy_(0.6 + 0.6 * torch.rand(1, generator=generator))
    return model.eval()


def causal_lm(form: str = "e2b", seed: int = 3, **changes: Any) -> Any:
    return randomized(Gemma4ForCausalLM(text_config(form, **changes)), seed)


def text_model(form: str = "e2b", seed: int = 3, **changes: Any) -> Any:
    return randomized(Gemma4TextModel(text_config(form, **changes)), seed)


def ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Token ids without the special ones."""
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))
