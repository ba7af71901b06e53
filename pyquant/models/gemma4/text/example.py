# SPDX-License-Identifier: Apache-2.0
"""A tiny Gemma4 language model in the form of 26B-A4B: experts, keys that are values, no per-layer inputs.

It owns its sizes; see pyquant.models.family.Example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import randomize_

TOKENS = 24  # of the prompt that is made up: each of four experts gets some of them
SLIDING, FULL = "sliding_attention", "full_attention"


def tiny_model() -> nn.Module:
    """Two layers, 32 wide, with 2 of 4 experts for each token."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 16,
        "layer_types": [SLIDING, FULL],
        "sliding_window": 8,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "final_logit_softcapping": 3.0,
        "max_position_embeddings": 64,
    }
    config = Gemma4TextConfig(**settings)
    config._attn_implementation = "eager"
    model: Any = randomize_(Gemma4ForCausalLM(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):  # there is no 1 / sqrt(head_dim): keep attention soft
                parameter.mul_(0.5)
        for number, layer in enumerate(model.model.layers):
            layer.layer_scalar.fill_(0.8 + 0.1 * number)
    return cast(nn.Module, model.eval())


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """One prompt, of TOKENS ids or as given. Raises InputError for images."""
    if len(images):
        raise InputError(f"a {type(model).__name__} takes a prompt alone; leave images out")
    if ids is None:
        generator = torch.Generator().manual_seed(1)
        vocabulary = int(cast(Any, model).config.vocab_size)
        row = torch.randint(3, vocabulary, (1, TOKENS), generator=generator, dtype=torch.int64, device="cpu")
        return {"input_ids": row}
    return {"input_ids": torch.tensor([list(ids)], dtype=torch.int64, device="cpu")}
