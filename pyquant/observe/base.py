# SPDX-License-Identifier: Apache-2.0
"""The base of all observers: tensors that native calls update in place, and counts of elements, finite and not.

It owns counting, placement on a device, and the view of a tensor that makes per-group per-channel. What is measured is
in the subclasses.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyquant import ops
from pyquant.errors import SpecError
from pyquant.qparams import QParams
from pyquant.spec import PerAxis, PerGroup, PerTensor, QuantSpec


class Observer(abc.ABC):
    """Statistics of the values at one site.

    `count` is int64 (2,): elements seen, non-finite elements among them. `batches` is how often `update` ran.
    Tensors follow the data to its device on first use; reading `elements` or `non_finite` waits for that device.
    """

    STATE: ClassVar[tuple[str, ...]] = ("count",)  # the tensors that move and merge
    KIND: ClassVar[str]

    def __init__(self, spec: QuantSpec) -> None:
        self.spec = spec
        self.reset()

    def reset(self) -> None:
        """Back to the state before any data."""
        self.batches = 0
        self.count = torch.zeros(2, dtype=torch.int64, device="cpu")

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add `x` to the statistics. Does not change `x`."""
        x = x.detach()
        if self.count.device != x.device:
            self.to(x.device)
        self._update(x)
        self.batches += 1

    @abc.abstractmethod
    def _update(self, x: Tensor) -> None: ...

    @abc.abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """(lo, hi), float32, of the shape that the spec's scale has. Call it only after data was observed."""

    def qparams(self) -> QParams:
        """Scale and zero point of the range. Raises SpecError when the range gives none."""
        scale, zero_point = ops.choose_qparams(*self.range(), self.spec.qmin, self.spec.qmax, self.spec.symmetric)
        return QParams(self.spec, scale, zero_point)

    def empty(self) -> Tensor:
        """bool, of the shape of the scale: True where the range is zero, or too small for a scale, and got scale 1."""
        lo, hi = (t.cpu().double() for t in self.range())
        low, high, spec = lo.clamp(max=0.0), hi.clamp(min=0.0), self.spec
        scale = torch.maximum(-low, high) / spec.qmax if spec.symmetric else (high - low) / (spec.qmax - spec.qmin)
        return scale.float() < torch.finfo(torch.float32).tiny

    def merge(self, other: Observer) -> None:
        """Add the statistics of `other`, as if this observer had observed its data too.

        Raises SpecError when the two do not fit.
        """
        if type(other) is not type(self) or other.spec != self.spec:
            raise SpecError(
                f"cannot merge {type(other).__name__} of {other.spec} into {type(self).__name__} of {self.spec}; "
                f"merge observers of the same site"
            )
        if other.batches == 0:
            return
        if self.batches == 0:
            for name in self.STATE:
                setattr(self, name, getattr(other, name).clone())
        else:
            other_state = {name: getattr(other, name).to(self.count.device) for name in self.STATE}
            self._merge(other_state, other.batches)
            self.count += other_state["count"]
        self.batches += other.batches

    @abc.abstractmethod
    def _merge(self, other: dict[str, Tensor], batches: int) -> None: ...

    def to(self, device: torch.device | str) -> None:
        """Move the statistics."""
        for name in self.STATE:
            setattr(self, name, getattr(self, name).to(device))

    def recast(self, spec: QuantSpec) -> Observer:
        """An observer for the format `spec` with the statistics of this one, which stays as it is.

        Raises SpecError for another granularity: the statistics are one for each scale.
        """
        if spec.granularity != self.spec.granularity:
            raise SpecError(f"statistics of {self.spec} say nothing about {spec}; observe the data anew")
        other = copy.copy(self)
        other.spec = spec
        for name in self.STATE:
            setattr(other, name, getattr(self, name).clone())
        return other

    @property
    def needs_data(self) -> bool:
        """False when the range is known without data."""
        return True

    @property
    def elements(self) -> int:
        """Elements seen, finite or not."""
        return int(self.count[0])

    @property
    def non_finite(self) -> int:
        """NaN and infinite elements seen; they are not part of the range."""
        return int(self.count[1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec}, batches={self.batches})"


def channels_of(x: Tensor, spec: QuantSpec) -> tuple[Tensor, int | None, Sequence[int]]:
    """(view, axis, scale shape): `x` viewed so that one range per index of `axis` is one range per scale of `spec`.

    Raises SpecError when the axis is out of range or the group does not divide it.
    """
    match spec.granularity:
        case PerTensor():
            return x, None, ()
        case PerAxis(axis):
            axis = _axis(x, axis, spec)
            return x, axis, (x.shape[axis],)
        case PerGroup(axis, size):
            axis = _axis(x, axis, spec)
            if x.shape[axis] % size:
                raise SpecError(
                    f"{spec}: the group size must divide dimension {axis} of {tuple(x.shape)}; "
                    + _sizes_that_fit(x.shape[axis], size)
                )
            shape = list(x.shape)
            shape[axis] //= size
            grouped = x.reshape(*shape[: axis + 1], size, *shape[axis + 1 :]).movedim(axis + 1, -1)
            return grouped.reshape(-1, size), 0, shape
    raise AssertionError(f"unknown granularity {spec.granularity!r}")


def _sizes_that_fit(width: int, size: int) -> str:
    """What to take instead of groups of `size`: the divisors of `width` that are nearest in ratio, in order."""
    divisors = [n for n in range(2, width) if width % n == 0]
    if not divisors:
        return f"nothing but 1 and {width} does: use PerAxis"
    near = sorted(divisors, key=lambda n: max(n / size, size / n))[:6]
    return f"sizes that do are {', '.join(map(str, sorted(near)))}"


def _axis(x: Tensor, axis: int, spec: QuantSpec) -> int:
    if not -x.dim() <= axis < x.dim():
        raise SpecError(f"{spec}: axis {axis} does not exist in a tensor of shape {tuple(x.shape)}")
    return axis % x.dim()
