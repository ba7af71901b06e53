# SPDX-License-Identifier: Apache-2.0
"""Tiny Llamas with nothing left at ones or zeros, of every layout and rotary type, and inputs for them.

It owns building. What is compared is test_llama_eager.py and test_llama_bundle.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import pyquant
from pyquant.models.example import randomize_
from pyquant.wrap import Phase, set_phase

torch.set_num_threads(1)

VOCAB, EOS, PAD, LONGEST = 61, 59, 60, 64
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,  # not hidden_size / num_attention_heads
    "max_position_embeddings": LONGEST,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True, "attention_bias": True},
    "no_groups": {"num_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1},
}
_THETA = {"rope_theta": 100.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", **_THETA},
    "linear": {"rope_type": "linear", "factor": 2.0, **_THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, **_THETA},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **_THETA},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0],
        **_THETA,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        **_THETA,
    },
}
CHANGING = ("dynamic", "longrope")  # frequencies that depend on the length of the sequence


def model(**overrides: Any) -> Any:
    config: Any = LlamaConfig(**{**BASE, **overrides})
    config._attn_implementation = "eager"
    return randomize_(LlamaForCausalLM(config)).eval()


def pair(**overrides: Any) -> tuple[Any, Any]:
    """The float model, and its tree in the float phase."""
    fp = model(**overrides)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return fp, q


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, EOS, shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: tuple[int, ...], side: str) -> dict[str, Tensor]:
    """Rows of unequal length: input_ids and attention_mask (B, longest)."""
    longest = max(lengths)
    given, mask = torch.full((len(lengths), longest), PAD), torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        own = slice(longest - length, None) if side == "left" else slice(length)
        given[row, own], mask[row, own] = ids(length, seed=row), 1
    return {"input_ids": given, "attention_mask": mask}


@cache
def tree(preset: str = "w8a16", rope: str = "llama3") -> tuple[Any, Any]:
    """(float model, converted tree), shared by all tests of a process and changed by none."""
    fp = model(rope_parameters=ROPES[rope], tie_word_embeddings=True)
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, [padded((9, 5, 7), "left"), {"input_ids": ids(1, 12, seed=5)}], progress=False)
    pyquant.convert(q)
    return fp, q


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    worst = float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert worst <= tolerance, f"off by {worst:.2e} of the largest value"
