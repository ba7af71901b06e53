# SPDX-License-Identifier: Apache-2.0
"""Tiny quantization-aware checkpoints of Google's kind, made and loaded by transformers' own classes.

It owns making the folder: integers over their whole range, scales per row, activation scales from what the model sees.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

gemma_quant = pytest.importorskip("transformers.integrations.gemma_quant")

from transformers import GemmaQuantizationConfig  # noqa: E402

Stored = (gemma_quant.QuantizedLinear, gemma_quant.QuantizedEmbedding)
#: as E2B's: some layers of each width
WIDTHS = {"num_bits": 4, "module_quant_configs": {"embed|mlp": {"num_bits": 2}, "q_proj|lm_head": {"num_bits": 8}}}
SHARD = "model.safetensors"


@torch.no_grad()
def stored_(model: nn.Module, *, skip: list[str] | None = None, seed: int = 0, **config: Any) -> nn.Module:
    """`model` with its linears and embeddings in the place of integers, as a loader of transformers leaves them."""
    options = GemmaQuantizationConfig(
        **{**WIDTHS, "quantize_embeddings": True, **config}, modules_to_not_convert=skip or []
    )
    gemma_quant.replace_with_quant_layers(model, options, options.modules_to_not_convert)
    if hasattr(model, "config"):
        model.config.quantization_config = options
    return randomized_(model, seed)


@torch.no_grad()
def randomized_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Integers from the lowest to the highest, scales that differ by row, no activation scale."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, Stored):
            continue
        linear = isinstance(module, gemma_quant.QuantizedLinear)
        packed = module.weight if linear else module.embedding_quantized
        info = torch.iinfo(packed.dtype)
        packed.random_(info.min, info.max + 1, generator=generator)
        packed[0, 0], packed[-1, 0] = info.min, info.max
        scale = module.weight_scale if linear else module.embedding_scale
        width = module.in_features if linear else 16
        scale.copy_((0.5 + torch.rand(scale.shape, generator=generator)) / 2 ** (module.num_bits - 1) * width**-0.5)
        if linear and module.bias is not None:
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def trained_(model: nn.Module, calls: Any, pattern: str = ".") -> nn.Module:
    """Give each linear whose name has `pattern` the activation scales of what it sees in `calls` (a function)."""
    seen: dict[str, list[float]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, gemma_quant.QuantizedLinear) and re.search(pattern, name):

            def watch(_: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name) -> None:
                ends = seen.setdefault(name, [0.0, 0.0])
                seen[name] = [max(ends[0], float(args[0].abs().max())), max(ends[1], float(out.abs().max()))]

            handles.append(module.register_forward_hook(watch))
    calls()
    for handle in handles:
        handle.remove()
    for name, (into, out) in seen.items():
        module = model.get_submodule(name)
        module.input_activation_scale.fill_(into / 127)
        module.output_activation_scale.fill_(out / 127)
    return model


def saved(model: Any, folder: Path, *, drop: str = "", extra: dict[str, Tensor] | None = None) -> Path:
    """The folder that transformers writes; without the tensors whose names have `drop`, and with `extra` ones."""
    model.save_pretrained(folder)
    tensors = load_file(folder / SHARD)
    kept = {name: value for name, value in tensors.items() if not (drop and re.search(drop, name))}
    save_file({**kept, **(extra or {})}, folder / SHARD, metadata={"format": "pt"})
    return folder


def integers(module: Any) -> Tensor:
    """(rows, width) of a layer, by transformers' own unpacking."""
    packed = module.weight if isinstance(module, gemma_quant.QuantizedLinear) else module.embedding_quantized
    width = module.in_features if isinstance(module, gemma_quant.QuantizedLinear) else module.embedding_dim
    unpack = {2: gemma_quant._unpack_int2, 4: gemma_quant._unpack_int4}.get(module.num_bits)
    return packed.detach() if unpack is None else unpack(packed, width)
