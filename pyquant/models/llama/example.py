# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with random weights, and inputs of token ids for any Llama.

It owns their sizes. A checkpoint with a tokenizer of its own does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import byte_ids, randomize_

EOS, PAD, VOCAB = 256, 257, 258  # the tiny model reads bytes: one id each, then the special ones


def tiny_model() -> nn.Module:
    """Three layers, 32 wide, grouped heads, Llama 3's scaled rotary frequencies; its tokens are bytes."""
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config: Any = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config._attn_implementation = "eager"
    return randomize_(LlamaForCausalLM(config)).eval()


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """A prompt. Raises InputError for images, and for ids beyond the vocabulary."""
    if len(images):
        raise InputError(f"a {type(model).__name__} takes text alone; leave the images out")
    config: Any = model.config
    row = byte_ids(int(config.vocab_size), ids)
    input_ids = torch.tensor([row], dtype=torch.int64, device="cpu")
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
