# SPDX-License-Identifier: Apache-2.0
"""transformers' layers of Google's quantization-aware checkpoints (`quant_method: gemma`), as stored integers.

It owns which attribute of HF's means what, and building such layers again for a saved tree. The arithmetic is
stored.py. The registry imports this file when it meets one of these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.integrations import gemma_quant

from pyquant.wrap.base import WrapContext
from pyquant.wrap.packed import Packing
from pyquant.wrap.registry import register
from pyquant.wrap.stored import StoredEmbedding, StoredLinear

HOW = "trained, in the gemma checkpoint"


@register(gemma_quant.QuantizedLinear)
class QuantQuantizedLinear(StoredLinear):
    """HF's `QuantizedLinear`: weight (out, bytes), weight_scale (out, 1), two activation scales."""

    HOW = HOW
    FORM = "gemma_linear"

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(
            fp,
            ctx,
            packing=Packing(int(fp.num_bits), int(fp.in_features)),
            packed=fp.weight,
            weight_scale=fp.weight_scale,
            bias=fp.bias,
            input_scale=_present(fp, "input_activation_scale", ctx),
            output_scale=_present(fp, "output_activation_scale", ctx),
        )


def _present(fp: Any, name: str, ctx: WrapContext) -> nn.Parameter:
    """The activation scale of `fp`, or 0 where its checkpoint has none and transformers left the memory as it was."""
    scale: nn.Parameter = getattr(fp, name)
    if f"{ctx.path}.{name}" not in ctx.absent:
        return scale
    return nn.Parameter(torch.zeros_like(scale), requires_grad=False)


@register(gemma_quant.QuantizedEmbedding)
class QuantQuantizedEmbedding(StoredEmbedding):
    """HF's `QuantizedEmbedding`: embedding_quantized (rows, bytes), embedding_scale (rows, blocks), embed_scale."""

    HOW = HOW
    FORM = "gemma_embedding"

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(
            fp,
            ctx,
            packing=Packing(int(fp.num_bits), int(fp.embedding_dim)),
            packed=fp.embedding_quantized,
            scale=fp.embedding_scale,
            factor=float(fp.scalar_embed_scale),
            dtype=fp.output_dtype,
        )

    def forward(self, input_ids: Any) -> Any:
        return super().forward(input_ids)


def rebuild_(model: nn.Module, forms: Mapping[str, Mapping[str, Any]]) -> None:
    """Put layers of these forms (module path -> what `stored_form` recorded) in the place of plain ones, in `model`."""
    for path, form in forms.items():
        model.set_submodule(path, _built(model.get_submodule(path), form))


def _built(plain: Any, form: Mapping[str, Any]) -> nn.Module:
    bits = int(form["bits"])
    if form["form"] == QuantQuantizedLinear.FORM:
        return gemma_quant.QuantizedLinear(
            plain.in_features, plain.out_features, bias=plain.bias is not None, num_bits=bits
        ).requires_grad_(False)
    if form["form"] != QuantQuantizedEmbedding.FORM:
        raise ValueError(f"a layer is stored as {form['form']!r}, which this pyquant does not know")
    new = gemma_quant.QuantizedEmbedding(
        plain.num_embeddings,
        plain.embedding_dim,
        plain.weight.dtype,
        embed_scale=float(getattr(plain, "scalar_embed_scale", 1.0)),
        num_bits=bits,
    )
    blocks = int(form.get("blocks", 1))
    if blocks != 1:
        new.embedding_scale = nn.Parameter(new.embedding_scale.new_ones(plain.num_embeddings, blocks))
    return new.requires_grad_(False)
