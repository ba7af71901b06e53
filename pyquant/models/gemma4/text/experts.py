# SPDX-License-Identifier: Apache-2.0
"""Gemma4's mixture of experts: the gated MLPs of the chosen experts, weighted and summed.

It owns the two ways in which a graph uses experts, and saying which of them saw no calibration data. Choosing is
router.py, the products are stacked_linear.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from pyquant.decoder.graphs import Dispatch
from pyquant.errors import InputError, ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4.hf import hf_class
from pyquant.models.gemma4.text.stacked_linear import StackedLinear
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import DataGap, Phase, QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype
from pyquant.wrap.registry import register

FEW = 32  # rows below which an expert's values are hardly a sample
_ADVICE = (
    "; they share the grids of the others' activations, which their values may exceed: calibrate with more data, or "
    "with other data (languages, subjects) that the router gives to them"
)


@dataclass(frozen=True)
class ExpertsProfile:
    """One static graph of the experts: how many tokens it takes, and how it uses the experts.

    "dense": every expert computes every token, with a weight of zero where it was not chosen. "gather": the weights of
    the chosen experts are gathered, one set for each token and choice; for a decode step. Equal numbers. None: gather
    where that reads fewer weights. Raises ProfileError.
    """

    tokens: int
    dispatch: Dispatch | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise ProfileError(f"tokens is a positive integer, got {self.tokens!r}")
        if self.dispatch is not None and self.dispatch not in get_args(Dispatch):
            raise ProfileError(f"dispatch is one of {', '.join(get_args(Dispatch))} or None, got {self.dispatch!r}")


@register(hf_class("Gemma4TextExperts"))
class QuantGemma4TextExperts(QModule):
    """GeGLU of each chosen expert, times its weight, summed over a token's experts.

    All experts share the sites of their activations: a graph that gathers weights has one tensor for whichever expert
    was chosen, and a tensor has one grid. So an expert that calibration data never reached has grids too; what it
    computes may exceed them, and `data_gaps` names it.
    """

    SITES = {
        "top_k_weights": Role.ACTIVATION,
        "gated": Role.ACTIVATION,
        "weighted": Role.ACTIVATION,
        "act_out": Role.ACTIVATION,
    }
    CHILDREN = ("act_fn",)
    COUNTS = ("rows_seen",)

    act_fn: QModule

    def __init__(self, fp: Any, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.experts, self.hidden_size = int(fp.num_experts), int(fp.hidden_dim)
        self.top_k = int(fp.config.top_k_experts)
        self.gate_up_proj = StackedLinear(fp.gate_up_proj, ctx.child("gate_up_proj"))
        self.down_proj = StackedLinear(fp.down_proj, ctx.child("down_proj"))
        self.rows_seen = torch.zeros(self.experts, dtype=torch.int64, device="cpu")

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *, dispatch: Dispatch | None = None
    ) -> Tensor:
        """hidden_states (T, D), top_k_index (T, k) int64, top_k_weights (T, k) -> (T, D).

        dispatch: as of ExpertsProfile. Outside of a graph None computes what was chosen, expert by expert. Raises
        InputError for an index that is no expert.
        """
        tokens, choices = top_k_index.shape
        if self.phase is Phase.CALIBRATE:
            self._count(top_k_index)
        weights = self.q("top_k_weights", as_dtype(top_k_weights, hidden_states.dtype))
        if self._dense(tokens * choices, dispatch):
            out = self._weighted(hidden_states[None], None, self._spread(top_k_index, weights))
            return self.q("act_out", out.sum(dim=0))
        rows = hidden_states[:, None, :].expand(tokens, choices, -1).reshape(tokens * choices, 1, -1)
        out = self._weighted(rows, top_k_index.reshape(-1), weights.reshape(-1, 1, 1))
        return self.q("act_out", out.reshape(tokens, choices, -1).sum(dim=1))

    def _weighted(self, x: Tensor, index: Tensor | None, weights: Tensor) -> Tensor:
        """x (N or 1, R, D) through the expert of each of the N slots, times weights (N, R, 1) -> (N, R, D)."""
        gate, up = self.gate_up_proj(x, index).chunk(2, dim=-1)
        gated = self.q("gated", self.act_fn(gate) * up)
        return self.q("weighted", self.down_proj(gated, index) * weights)

    def _dense(self, chosen: int, dispatch: Dispatch | None) -> bool:
        traced = self.state.explicit or torch.compiler.is_compiling()
        return dispatch == "dense" or (dispatch is None and traced and chosen >= self.experts)

    def _spread(self, index: Tensor, weights: Tensor) -> Tensor:
        """index and weights (T, k) -> (E, T, 1): the weight of each expert for each token, zero where not chosen."""
        numbers = torch.arange(self.experts, dtype=torch.int64, device=index.device)
        chosen = torch.where(index[:, :, None] == numbers, weights[:, :, None], 0.0)
        return self.q("top_k_weights", chosen.sum(dim=1)).transpose(0, 1)[:, :, None]

    def _count(self, index: Tensor) -> None:
        numbers = index.reshape(-1).cpu()
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.experts:
            raise InputError(f"{self.path!r} has experts 0 to {self.experts - 1}, got top_k_index {numbers.tolist()}")
        self.rows_seen = self.rows_seen + torch.bincount(numbers, minlength=self.experts)

    def data_gaps(self) -> list[DataGap]:
        """The experts that no row of the calibration data, or fewer than FEW, was given to."""
        seen = self.rows_seen.tolist()
        none = [str(expert) for expert, rows in enumerate(seen) if rows == 0]
        few = [f"{expert} ({rows} rows)" for expert, rows in enumerate(seen) if 0 < rows < FEW]
        gaps = []
        if any(seen) and none:
            gaps.append(
                DataGap(self.path, f"experts {_some(none)} of {self.experts} saw no calibration data{_ADVICE}", 0)
            )
        if few:
            text = f"experts {_some(few)} of {self.experts} saw fewer than {FEW} rows of calibration data{_ADVICE}"
            gaps.append(DataGap(self.path, text, min(rows for rows in seen if rows)))
        return gaps

    def as_export_module(self, profile: ExpertsProfile) -> GraphAdapter:
        """hidden_states (T, D), top_k_index (T, k), top_k_weights (T, k) -> hidden_states_out (T, D)."""
        if not isinstance(profile, ExpertsProfile):
            raise ProfileError(
                f"{type(self).__name__} is exported with gemma4.ExpertsProfile(tokens=..., dispatch=...), "
                f"got {profile!r}"
            )
        dtype = self.down_proj.weight.dtype
        chosen = (profile.tokens, self.top_k)
        inputs = {
            "hidden_states": TensorSpec((profile.tokens, self.hidden_size), dtype),
            "top_k_index": TensorSpec(chosen, torch.int64),
            "top_k_weights": TensorSpec(chosen, dtype),
        }

        def call(*given: Tensor, module: QModule) -> Any:
            return module(*given, dispatch=profile.dispatch)

        return GraphAdapter(
            self, call, inputs=inputs, outputs=("hidden_states_out",), name="gemma4_experts", parts={"module": self}
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
