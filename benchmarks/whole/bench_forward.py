# SPDX-License-Identifier: Apache-2.0
"""A decoder layer of Qwen3-VL, eager: calibrating and running it quantized, against its float forward and TICO's."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRotaryEmbedding

import pyquant
from benchmarks.rivals import Rivals, rivals

TOKENS = 128


@cache
def layer() -> tuple[nn.Module, dict[str, Any]]:
    """A layer of half the 2B model's width, and what it is called with."""
    torch.manual_seed(0)
    config = Qwen3VLTextConfig(
        hidden_size=1024, intermediate_size=3072, num_attention_heads=8, num_key_value_heads=4, head_dim=128,
        num_hidden_layers=1, vocab_size=128, max_position_embeddings=TOKENS, attn_implementation="eager",
    )  # fmt: skip
    hidden = torch.randn(1, TOKENS, config.hidden_size)
    positions = torch.arange(TOKENS)[None]
    table = Qwen3VLTextRotaryEmbedding(config)(hidden, positions[None].expand(3, -1, -1))
    mask = torch.full((1, 1, TOKENS, TOKENS), -1e4).triu(1)
    batch = {"hidden_states": hidden, "position_embeddings": table, "attention_mask": mask}
    return Qwen3VLTextDecoderLayer(config, 0).eval(), batch


def peer(fp: nn.Module, batch: dict[str, Any]) -> tuple[Any, Any]:
    """TICO's wrapper of the layer as it calibrates, and its quantized one."""
    from tico import quantization
    from tico.quantization.config.ptq import PTQConfig

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        observed = quantization.prepare(copy.deepcopy(fp), PTQConfig())
        observed(**batch)
        done = quantization.convert(copy.deepcopy(observed), inplace=True)
    return observed, done


def plain(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@rivals("pyquant", "float", "TICO", threads=(2, 1), short=True, seconds=4.0)
def bench_quantized_forward() -> Rivals:
    fp, batch = layer()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8-fast"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    _, theirs = peer(fp, batch)
    calls: Rivals = {"pyquant": lambda: q(**batch), "float": lambda: fp(**batch), "TICO": lambda: theirs(**batch)}
    return checked(calls)


@rivals("pyquant", "float forward", "TICO", threads=(2, 1), seconds=4.0)
def bench_calibrate() -> Rivals:
    fp, batch = layer()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8-fast"))
    theirs, _ = peer(fp, batch)
    calls: Rivals = {
        "pyquant": lambda: pyquant.calibrate(q, [batch], progress=False),
        "float forward": lambda: fp(**batch),
        "TICO": lambda: theirs(**batch),
    }
    return {name: quiet(call) for name, call in calls.items()}


def checked(calls: Rivals) -> Rivals:
    """Each on its own grids, near the float result."""
    calls = {name: quiet(call) for name, call in calls.items()}
    expected = plain(calls["float"]())
    for name, call in calls.items():
        lost = float((plain(call()) - expected).norm() / expected.norm())
        assert lost < 0.1, f"{name} is {lost:.3f} away from float"
    return calls


def quiet(call: Any) -> Any:
    return torch.no_grad()(call)
