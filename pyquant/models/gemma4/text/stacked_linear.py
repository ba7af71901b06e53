# SPDX-License-Identifier: Apache-2.0
"""The linears of all experts in one weight, of which each row of the input uses one, or all of them.

It owns the sites of such a product and the form in which a file can hold and gather the weights. Which expert a token
gets is router.py, what experts compute is experts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyquant import ops
from pyquant.qparams import QParams
from pyquant.site import TensorCache
from pyquant.spec import BlockSpec, PerAxis
from pyquant.wrap.base import Phase, QModule, Role, WrapContext
from pyquant.wrap.dtype import as_dtype


class StackedLinear(QModule):
    """E linears without bias; `stack` (E, out, in) is kept as `weight` (E * out, in), the same storage.

    PerAxis(0) of a policy is therefore a scale for each row of each expert, and PerGroup(1, n) groups along the inputs.
    A Circle tensor that is gathered has one scale. With a scale per row the file holds the integers of the weights on
    the grid of scale 1 (zero points are subtracted, which takes 16 bits), and the scales as a constant of their own:
    `product` is what the integers give, `act_out` that product times `row_scale`. The simulation does the same for
    every way of choosing experts, so that a prefill with all of them and a decode that gathers some have equal numbers.
    Per tensor, neither site is needed.
    """

    SITES = {"act_in": Role.ACTIVATION, "weight": Role.WEIGHT, "act_out": Role.ACTIVATION}

    def __init__(self, stack: nn.Parameter, ctx: WrapContext) -> None:
        super().__init__(None, ctx)
        self.experts, self.out_features, self.in_features = stack.shape
        self.weight = nn.Parameter(stack.detach().flatten(0, 1), requires_grad=stack.requires_grad)
        spec = self.site("weight").spec
        plain = spec is None or isinstance(spec, BlockSpec) or not isinstance(spec.granularity, PerAxis)
        self.by_row = not plain
        if self.by_row:
            self.add_site("row_scale", Role.CONSTANT)
            self.add_site("product", Role.ACTIVATION)
        self._scales = TensorCache()

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (N or 1, R, in) -> (N, R, out). index (N,): the expert of each of the N slots; None: slot n is expert n."""
        x = self.q("act_in", x)
        weight = self.const("weight", self.weight)
        scale = self._row_scale() if self.by_row else None
        if scale is None or self.site("weight").scale is None:
            out = self._times(x, weight, None, index)
            if scale is not None and self.phase is Phase.CALIBRATE:
                self.q("product", out / self._steps(scale, index))
            return self.q("act_out", out)
        product = self.q("product", self._times(x, weight, scale, index))
        return self.q("act_out", as_dtype(product * self._steps(scale, index), x.dtype))

    def watch_rows(self, see: Callable[[int, Tensor], None]) -> RemovableHandle:
        """Let `see(expert, rows)` have the rows (N, in) that are given to each expert, until the handle is removed."""

        def watch(_: nn.Module, given: tuple[Tensor, Tensor | None]) -> None:
            x, index = given
            for expert in range(self.experts) if index is None else torch.unique(index).tolist():
                own = x[expert if len(x) > 1 else 0][None] if index is None else x[index == expert]
                see(expert, own.reshape(-1, self.in_features))

        return self.register_forward_pre_hook(watch)

    def constants(self) -> Mapping[str, Tensor]:
        """The weight, and the scales of its rows where they are constants too (not of a weight without values)."""
        scale = self._row_scale() if self.by_row and not self.weight.is_meta else None
        return {"weight": self.weight} | ({} if scale is None else {"row_scale": scale})

    def _row_scale(self) -> Tensor | None:
        """(E * out,) the scale of each row: the grid's, or before convert what its statistics give; None for none."""
        site = self.site("weight")
        if site.scale is not None or site.observer is None:
            return site.scale
        site.scan(self.weight)
        scale = self._scales.get((self.weight,), self._found_scale)
        return scale if len(scale) else None

    def _found_scale(self) -> Tensor:
        """(E * out,), or nothing for weights that give no grid; convert says so."""
        found = self.site("weight").compute_qparams()
        return found.scale if isinstance(found, QParams) else torch.empty(0, dtype=torch.float32, device="cpu")

    def _steps(self, scale: Tensor, index: Tensor | None) -> Tensor:
        """(N, 1, out): the scales of the rows of the chosen experts, as the file has them."""
        return _chosen(self.const("row_scale", scale).reshape(self.experts, 1, self.out_features), index)

    def _times(self, x: Tensor, weight: Tensor, scale: Tensor | None, index: Tensor | None) -> Tensor:
        """x times the weights of the chosen experts, or times their integers where `scale` is given."""
        if index is None or self.state.explicit or torch.compiler.is_compiling():
            kernels = self._integers(weight, scale).view(self.experts, self.out_features, self.in_features)
            return torch.matmul(x, _chosen(kernels, index).transpose(-1, -2))
        out = x.new_empty(len(index), x.shape[1], self.out_features)
        for expert in torch.unique(index).tolist():  # as transformers does: an expert computes what it was chosen for
            slots = (index == expert).nonzero().flatten()
            rows = slice(expert * self.out_features, (expert + 1) * self.out_features)
            kernel = self._integers(weight[rows], None if scale is None else scale[rows])
            out = out.index_copy(0, slots, F.linear(x[slots], kernel))
        return out

    def _integers(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        """The weights (R, in) in steps of their row's `scale` (R,); as they are for None."""
        if scale is None:
            return weight
        steps = weight / scale[:, None]
        site = self.site("weight")
        if site.phase is Phase.QUANTIZED:
            assert site.spec is not None
            assert site.zero_point is not None
            top = site.spec.qmax if site.spec.symmetric else 32767
            one, zero = scale.new_ones(()), site.zero_point.new_zeros(())
            steps = ops.fake_quantize(steps, one, zero, None, 0, -top, top)
        return as_dtype(steps, weight.dtype)


def _chosen(stack: Tensor, index: Tensor | None) -> Tensor:
    """(E, ...) -> (N, ...): the entries of the chosen experts; all of them for None."""
    return stack if index is None else stack.index_select(0, index)
