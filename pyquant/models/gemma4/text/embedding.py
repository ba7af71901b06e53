# SPDX-License-Identifier: Apache-2.0
"""Gemma4's token tables: rows times a constant.

It owns the constant as a number. The table is pyquant.wrap.embedding's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.base import WrapContext
from pyquant.wrap.embedding import QuantEmbedding
from pyquant.wrap.registry import register

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@register(hf_class("Gemma4TextScaledWordEmbedding"))
class QuantGemma4TextScaledWordEmbedding(QuantEmbedding):
    """ids (...) int -> rows * sqrt(width) (..., width); the factor is rounded to the table's type, as in HF.

    In a file the product takes the place of the QUANTIZE that brings rows to the grid of activations.
    """

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        exact = torch.tensor(float(fp.scalar_embed_scale), dtype=torch.float32, device="cpu")
        self.factors = {dtype: float(exact.to(dtype)) for dtype in _TYPES}

    @property
    def factor(self) -> float:
        """What rows are multiplied by."""
        return self.factors[self.weight.dtype]

    def forward(self, ids: Tensor) -> Tensor:
        """Raises InputError for an id that is not a row of the table."""
        return self.q("act_out", self.rows(ids) * self.factor)

    def float_rows(self, ids: Tensor) -> Tensor:
        return super().float_rows(ids) * self.factor
