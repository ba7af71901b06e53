# SPDX-License-Identifier: Apache-2.0
"""The integers of a bias: they have the scale input x weight, so the weight's scale must suit them.

It owns choosing that scale when a tree is converted, and the bias on its grid. When this runs is lifecycle.py and
base.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant import ops
from pyquant.qparams import QParams
from pyquant.spec import PerGroup, PerTensor, QuantSpec

__all__ = ["BiasGrid", "bias_bits", "bias_scale", "fake_quantize_bias"]

_TINY = torch.finfo(torch.float32).tiny  # a smaller scale is not a normal float
_HUGE = torch.finfo(torch.float32).max
# The largest integer that a bias may have. Half of int32: the accumulator that starts at the bias must hold the
# products too. For 16-bit inputs the accumulator is int64, but the fixed-point multiplication that runtimes apply to
# it takes 48 bits (TFLite's MultiplyByQuantizedMultiplier for int64), of which this is half of the positive ones.
_LIMIT = {32: 2.0**30, 64: 2.0**46}
# The integer that the largest bias of a channel without weights gets: as exact as a float32.
_EXACT = 2.0**24


@dataclass(frozen=True)
class BiasGrid:
    """One bias with all that its scale depends on.

    `value` is the bias (C,). `x` is the grid of the input, per tensor. `weight` is the grid of the weight, per tensor
    or one scale per element of the bias; `empty`, of the shape of its scale, is True where the weight's values give no
    scale (zeros) and any scale serves them. `out` is the grid of the output, None when the output stays float.
    """

    value: Tensor
    x: QParams
    weight: QParams
    empty: Tensor
    out: QParams | None

    def fit(self) -> QParams | str:
        """The grid of the weight under which the bias fits its integers, or the reason why there is none.

        A scale is only ever raised: a smaller one would clip the weights. Where the weights give no scale it follows
        from the bias. Raising costs weights of any width next to nothing: a bias that needs it is at least 2^30 times
        (2^46 with 16-bit inputs) as large as one step of the products, and the step of an output that can show that
        bias covers 2^22 (2^31) of these. A grid that needs no change is returned as it is.
        """
        value, scale = self.value.detach().cpu().double().abs(), self.weight.scale.cpu().double()
        if self.weight.scale.dim() == 0:
            value = value.amax() if value.numel() else value.new_zeros(())
        x, empty = float(self.x.scale), self.empty.cpu() & (value > 0)
        scale = torch.where(empty, value / (x * _EXACT), scale)
        least = (value / (x * _LIMIT[bias_bits(self.x.spec)])).clamp(min=2 * _TINY / x).clamp(min=_TINY)
        new = torch.maximum(scale, least)
        if not bool(((new <= _HUGE) & (new * x <= _HUGE)).all()):
            return (
                f"a bias of {float(value.max()):.6g} with an input scale of {x:.6g} needs a weight scale that is no "
                "float32 number; repair the model, or leave its input float by a rule"
            )
        grid = self._with_scale(new)
        return self._too_coarse(grid) or grid

    def _with_scale(self, new: Tensor) -> QParams:
        """The weight's grid with the scales `new` (float64); zero points move so that the low end stays in range."""
        spec, device = self.weight.spec, self.weight.scale.device
        old, zero_point, scale = self.weight.scale.cpu(), self.weight.zero_point.cpu(), new.float()
        if torch.equal(scale, old):
            return self.weight
        if not spec.symmetric:
            steps = (zero_point - spec.qmin).double() * old.double() / scale.double()
            moved = (spec.qmin + steps.round()).clamp(spec.qmin, spec.qmax).int()
            zero_point = torch.where((scale == old) | self.empty.cpu(), zero_point, moved)
        return QParams(spec, scale.to(device), zero_point.to(device))

    def _too_coarse(self, grid: QParams) -> str | None:
        """The message for a bias that loses more than half a step of the output, within the output's range.

        A 16-bit output of 8-bit inputs is compared at 8 bits: the products are no finer than that.
        """
        if self.out is None:
            return None
        step, zero_point, spec = float(self.out.scale), int(self.out.zero_point), self.out.spec
        low, high = (spec.qmin - zero_point) * step, (spec.qmax - zero_point) * step
        step *= 2.0 ** max(0, spec.dtype.bits - self.x.spec.dtype.bits)
        scale = bias_scale(self.x, grid)
        assert scale is not None
        if bool((scale <= step).all()):
            return None
        bias = self.value.detach().float().cpu()
        rounded = ops.fake_quantize_bias(bias, scale.cpu(), bias_bits(self.x.spec)).double()
        lost = (bias.double().clamp(low, high) - rounded.clamp(low, high)).abs() / step
        if float(lost.max()) <= 0.5:
            return None
        channel = int(lost.argmax())
        return (
            f"its bias is rounded to multiples of input scale x weight scale, and channel {channel} loses "
            f"{float(lost.max()):.3g} steps of the output that way ({float(bias[channel]):.6g} becomes "
            f"{float(rounded[channel]):.6g}): the inputs are wide where the weights are large; give the weight more "
            "bits or a scale per channel, or leave the input float, by a rule"
        )


def bias_scale(x: QParams | None, weight: QParams | None) -> Tensor | None:
    """Input scale x weight scale, on the weight's device: () or one per channel.

    None where a bias has no integers: float input or weight, 4-bit input, weight scales per group.
    """
    if x is None or weight is None or x.spec.dtype.bits < 8 or not isinstance(x.spec.granularity, PerTensor):
        return None
    if isinstance(weight.spec.granularity, PerGroup):
        return None
    return x.scale.to(weight.scale.device) * weight.scale


def bias_bits(x: QuantSpec) -> int:
    """Bits of the integers of a bias: 32 beside 8-bit inputs `x`, 64 beside 16-bit ones."""
    return 64 if x.dtype.bits == 16 else 32


def fake_quantize_bias(value: Tensor, scale: Tensor, bits: int) -> Tensor:
    """`value` on its grid, in its own type."""
    if value.dtype == torch.float32:  # no cast nodes in the graph
        return ops.fake_quantize_bias(value, scale, bits)
    return ops.fake_quantize_bias(value.float(), scale, bits).to(value.dtype)
