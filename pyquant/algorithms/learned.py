# SPDX-License-Identifier: Apache-2.0
"""A weight whose rounding offsets and range are being learned.

It owns its values on the grid, and one step of signed gradients. What is compared is rounding.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant import ops
from pyquant.qparams import QParams
from pyquant.spec import PerAxis, PerGroup
from pyquant.weight import Weight

__all__ = ["Learned"]

NARROWEST, WIDEST = 0.5, 1.5  # of the range, relative to the one at the start


class Learned:
    """W' = s * (clamp(round(W / s + V) + z, qmin, qmax) - z) of `weight`, with s = f * the scale of `grid`.

    V (the weight's shape) is 0 and f (the scale's shape) 1 at the start. integers: those to start from; V is then what
    gives them, as near to 0 as can be, and stays within .5 of that; None for the nearest. The name is that of the
    parameter in the block at the path `block`.
    """

    def __init__(self, weight: Weight, grid: QParams, block: str, integers: Tensor | None = None) -> None:
        self.weight, self.grid = weight, grid
        self.name = f"{weight.module.path.removeprefix(block)}.{weight.name}".lstrip(".")
        self._dtype = weight.value.dtype
        self._rows = _view(weight.value.float(), grid)
        self._offset = torch.zeros_like(self._rows)
        self._factor = torch.ones_like(grid.scale)
        self._center: Tensor | None = None
        if integers is not None:
            places = _view(integers.float(), grid) - _spread(grid.zero_point.float(), grid)
            away = places - self._rows / _spread(grid.scale, grid)
            self._center = torch.where(away.abs() <= _INSIDE, 0.0, away - away.sign() * _INSIDE)
            self._offset += self._center
        self._kept: tuple[Tensor, Tensor] | None = None
        self._taken: tuple[Tensor, Tensor, Tensor] | None = None  # by leaf: before the grid, on it, the leaf

    @property
    def bits(self) -> int:
        return self.grid.spec.dtype.bits

    @property
    def scale(self) -> Tensor:
        """The scale now."""
        return self.grid.scale * self._factor

    def value(self) -> Tensor:
        """W' in the type of the weight."""
        return self._fake(self._moved()).to(self._dtype)

    def leaf(self) -> Tensor:
        """W', whose gradient `step` takes."""
        before = self._moved().requires_grad_()
        on_grid = self._fake(before)
        leaf = on_grid.detach().to(self._dtype).requires_grad_()
        self._taken = before, on_grid, leaf
        return leaf

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """V and f by `lr` against the sign of their gradients, which pass where the value is within the grid.

        After `leaf` and a backward pass through it; a leaf that no sample reached (an expert's) has none.
        """
        if self._taken is None:
            return
        before, on_grid, leaf = self._taken
        if leaf.grad is None:
            return
        gradient = leaf.grad.float()
        (inside,) = torch.autograd.grad(on_grid, before, gradient)
        # d W' / d s = W' / s, less W / s where the value is within the grid
        by_scale = gradient * on_grid.detach()
        by_scale = _view(by_scale, self.grid).sub_(_view(inside, self.grid) * self._rows).sum(-1)
        self._offset -= lr * _view(inside, self.grid).sign()
        if self._center is None:
            self._offset.clamp_(-0.5, 0.5)
        else:
            self._offset.clamp_(self._center - 0.5, self._center + 0.5)
        self._factor -= lr * by_scale.reshape(self._factor.shape).sign()
        self._factor.clamp_(NARROWEST, WIDEST)

    def keep(self) -> tuple[Tensor, Tensor]:
        """Remember the integers and scale of now, and return them; `decide` takes what was remembered last."""
        spec, scale = self.grid.spec, self.scale
        integers = ops.quantize(
            self._moved(), scale, self.grid.zero_point, self.grid.axis, self.grid.group, spec.qmin, spec.qmax,
            torch.int8 if spec.dtype.bits <= 8 else torch.int16,
        )  # fmt: skip
        self._kept = integers, scale.clone()
        return self._kept

    def decide(self, how: str) -> None:
        """Decide the weight."""
        integers, scale = self._kept or self.keep()
        self.weight.decide(QParams(self.grid.spec, scale, self.grid.zero_point), how, integers, final=False)

    def _moved(self) -> Tensor:
        """W + V s, which the grid then rounds to the nearest."""
        moved = torch.addcmul(self._rows, self._offset, _spread(self.scale, self.grid))
        return moved.reshape(self.weight.value.shape)

    def _fake(self, moved: Tensor) -> Tensor:
        grid, spec = self.grid, self.grid.spec
        return ops.fake_quantize(moved, self.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax)


_INSIDE = 0.499  # of a step: where a value is that rounds to its integer, and hardly


def _view(value: Tensor, grid: QParams) -> Tensor:
    """(scales along the rows, scales along the columns, values of one scale)."""
    match grid.spec.granularity:
        case PerAxis():
            return value.unsqueeze(1)
        case PerGroup(_, size):
            return value.reshape(len(value), -1, size)
        case _:
            return value.reshape(1, 1, -1)


def _spread(scale: Tensor, grid: QParams) -> Tensor:
    """A scale beside `_view` of the values."""
    return scale.reshape(*(scale.shape if scale.dim() == 2 else (-1, 1)), 1)
