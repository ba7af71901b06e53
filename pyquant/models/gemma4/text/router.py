# SPDX-License-Identifier: Apache-2.0
"""The router of Gemma4's mixture of experts: which experts a token gets, and with which weights.

It owns the choice, also for targets that have no operator for it. What the experts compute is experts.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.base import Phase, QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype, as_float32
from pyquant.wrap.registry import register


@register(hf_class("Gemma4TextRouter"))
class QuantGemma4TextRouter(QModule):
    """RMSNorm without gain, times scale / sqrt(D), a linear, softmax, the k largest, which then sum to 1.

    Quantized, the k largest are those of the logits: softmax keeps their order,
    and its grid has fewer steps between them; equal ones go to the expert of lower number (torch.topk, which the float
    phases use as transformers does, leaves that open). The weights are the softmax of the chosen logits alone, which is
    what probabilities divided by their sum are.
    """

    CHILDREN = ("norm", "proj")
    SITES = {
        "scale": Role.CONSTANT,
        "scaled": Role.ACTIVATION,
        "probabilities": Role.SOFTMAX,
        "normalized": Role.SOFTMAX,
        "per_expert_scale": Role.CONSTANT,
        "act_out": Role.ACTIVATION,
    }

    norm: QModule
    proj: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.top_k = int(fp.config.top_k_experts)
        self.experts = int(fp.proj.out_features)
        self.factor = float(fp.scalar_root_size)
        self.softmax_dtype = _softmax_dtype(fp)
        self.scale, self.per_expert_scale = fp.scale, fp.per_expert_scale

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden_states (T, D) -> probabilities (T, E), weights (T, k) and experts (T, k) int64, largest first."""
        normed = self.norm(hidden_states[None])[0]  # RMS_NORM has three or four dimensions
        x = self.q("scaled", normed * self.const("scale", self.scale))
        logits = self.proj(x * self.factor)
        dtype = x.dtype if self.softmax_dtype is None else self.softmax_dtype
        raw = F.softmax(logits, dim=-1, dtype=dtype) if logits.dtype != dtype else F.softmax(logits, dim=-1)
        probabilities = self.q("probabilities", raw)
        per_expert = self.const("per_expert_scale", self.per_expert_scale)
        if self.phase is Phase.QUANTIZED or self.state.explicit:
            index = self._largest(logits)
            weights = as_dtype(F.softmax(as_float32(self._at(logits, index)), dim=-1), dtype)
        else:
            chosen, index = torch.topk(probabilities, k=self.top_k, dim=-1)
            weights = chosen / chosen.sum(dim=-1, keepdim=True)
        factors = per_expert.index_select(0, index.reshape(-1)).reshape(index.shape)
        return probabilities, self.q("act_out", self.q("normalized", weights) * factors), index

    def _largest(self, logits: Tensor) -> Tensor:
        """(T, E) -> (T, k): the experts of the k largest logits, by counting for each how many come before it.

        No runtime that pyquant compares with has TOPK_V2; comparisons, sums and ARG_MAX they have.
        """
        numbers = torch.arange(self.experts, dtype=torch.int64, device=logits.device)
        lower = numbers[None, :] < numbers[:, None]  # [i, j]: j wins a tie with i
        own, other = logits[:, :, None], logits[:, None, :]
        ahead = ((other >= own) & lower).to(torch.int32) + ((other > own) & ~lower).to(torch.int32)
        rank = ahead.sum(dim=-1, dtype=torch.int32)
        places = torch.arange(self.top_k, dtype=torch.int32, device=logits.device)
        return (rank[:, None, :] == places[:, None]).to(torch.int32).argmax(dim=-1)

    def _at(self, logits: Tensor, index: Tensor) -> Tensor:
        """logits (T, E) at index (T, k), as one look-up in all of them."""
        tokens = index.shape[0]
        starts = torch.arange(tokens, dtype=torch.int64, device=index.device)[:, None] * self.experts
        return logits.reshape(-1).index_select(0, (index + starts).reshape(-1)).reshape(index.shape)


def _softmax_dtype(fp: Any) -> torch.dtype | None:
    """The type in which this release of transformers computes the probabilities of a bfloat16 model; None: its own.

    Asked of the class itself, without data.
    """
    with torch.device("meta"), torch.no_grad():
        router = type(fp)(fp.config).to(torch.bfloat16)
        probabilities, *_ = router(torch.empty(1, fp.hidden_size, dtype=torch.bfloat16, device="meta"))
    return torch.float32 if probabilities.dtype == torch.float32 else None
