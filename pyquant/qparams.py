# SPDX-License-Identifier: Apache-2.0
"""QParams: the scale and zero point of a calibrated site, validated once, frozen.

`convert` stores these and export reads them. Computing the numbers is observe/ and ops/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.errors import SpecError
from pyquant.spec import PerAxis, PerGroup, PerTensor, QuantSpec


@dataclass(frozen=True, eq=False)
class QParams:
    """A number format with its scale and zero point.

    `scale` is float32, `zero_point` int32, both of one shape: () per tensor, (C,) per channel, and for groups the
    tensor's shape with `axis` divided by the group size. Raises SpecError unless every scale is finite and positive
    and every zero point is on the grid (and is 0 for a symmetric format).
    """

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor

    def __post_init__(self) -> None:
        scale, zero_point = self.scale, self.zero_point
        if scale.dtype != torch.float32 or zero_point.dtype != torch.int32:
            raise SpecError(
                f"QParams need a float32 scale and an int32 zero_point, got {scale.dtype} and {zero_point.dtype}"
            )
        if scale.shape != zero_point.shape:
            raise SpecError(f"QParams need one zero_point per scale, got {scale.shape = } and {zero_point.shape = }")
        ranks = {PerTensor: 0, PerAxis: 1}
        rank = ranks.get(type(self.spec.granularity))
        if rank is not None and scale.dim() != rank:
            raise SpecError(f"{self.spec} needs a scale of rank {rank}, got {tuple(scale.shape)}")
        if not scale.numel():
            return
        least, largest = _ends(scale)
        if not 0 < least <= largest < math.inf:  # not where one is NaN either
            bad = scale[~(torch.isfinite(scale) & (scale > 0))].flatten()[0].item()
            raise SpecError(f"every scale must be finite and positive, found {bad}")
        low, high = (0, 0) if self.spec.symmetric else (self.spec.qmin, self.spec.qmax)
        first, last = map(int, _ends(zero_point))
        if first < low or last > high:
            raise SpecError(f"a zero_point of {self.spec} lies in [{low}, {high}], found {first}..{last}")

    @property
    def axis(self) -> int | None:
        """The axis of the scales (None per tensor), as the native operators take it."""
        granularity = self.spec.granularity
        return granularity.axis if isinstance(granularity, PerAxis | PerGroup) else None

    @property
    def group(self) -> int:
        """Elements that share a scale along `axis`; 0 when not grouped, as the native operators take it."""
        return self.spec.granularity.size if isinstance(self.spec.granularity, PerGroup) else 0

    def same_grid(self, other: QParams) -> bool:
        """True when both have the same grid, so that requantizing from one to the other changes nothing."""
        return (
            self.spec == other.spec
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )


def _ends(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest of some values; NaN, NaN where one is NaN."""
    if values.dim() == 0:  # most sites have one scale
        return (value := values.item()), value
    least, largest = torch.aminmax(values)
    return least.item(), largest.item()
