# SPDX-License-Identifier: Apache-2.0
"""Undecided: the weights of a converted tree as they were before they were decided, for those who compare with float.

A tree computes with the values that were decided, in its FLOAT phase too. It owns letting the earlier ones pass, from a
tree that has them. What is compared is sensitivity/ and reporter/.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from pyquant.errors import InputError, PhaseError
from pyquant.site import Clip, Phase, Site
from pyquant.weight import Weight, weights
from pyquant.wrap import QModule

__all__ = ["Undecided"]


class Undecided:
    """The weights of the converted tree `q` in `reference`, a tree of the same model whose weights nobody decided:
    prepared, with the folding steps of the recipe (`oneshot.calibrate_by(tree, batches, recipe, only=("fold",))`).

    Without a reference, a weight that is on its grid (decided, or loaded) stays what it is: `settled` has the paths of
    these. Raises PhaseError for a reference that is converted or has decided weights, InputError for another model.
    """

    def __init__(self, q: QModule, reference: QModule | None) -> None:
        own = [weight for weight in weights(q) if weight.site.scale is not None]
        self._values = {} if reference is None else _values(own, reference)
        self.settled = () if self._values else tuple(weight.path for weight in own if _is_settled(weight))

    @contextmanager
    def passing(self) -> Iterator[None]:
        """While the block runs, the weights in the FLOAT phase are those of the reference."""
        with ExitStack() as stack:
            for site, value in self._values.items():
                stack.enter_context(site.tap(_Pass(value)))
            yield


class _Pass:
    """A tap of a weight's site: in the FLOAT phase another value passes."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def __call__(
        self, site: Site, x: Tensor, out: Tensor, *, clip: Clip | None, observed: Tensor | None, constant: bool
    ) -> Tensor | None:
        return self._value if site.phase is Phase.FLOAT else None


def _values(own: list[Weight], reference: QModule) -> dict[Site, Tensor]:
    """The site of each weight -> its value in `reference`."""
    if not isinstance(reference, QModule) or reference.state.converted:
        raise PhaseError(
            "the reference is no tree before its weights are decided: it is pyquant.prepare of the float model, with "
            "the steps of the recipe that fold, and not converted"
        )
    there = {weight.path: weight for weight in weights(reference)}
    found: dict[Site, Tensor] = {}
    for weight in own:
        other = there.get(weight.path)
        if other is None or other.value.shape != weight.value.shape:
            seen = "no such weight" if other is None else f"one of shape {tuple(other.value.shape)}"
            raise InputError(
                f"the reference has {seen} where the tree has {weight.path!r} of {tuple(weight.value.shape)}; give a "
                "tree of the same model"
            )
        if other.how:
            raise PhaseError(
                f"weight {other.path!r} of the reference is decided too ({other.how}); give a tree before that"
            )
        found[weight.site] = other.value.to(device=weight.value.device, dtype=weight.value.dtype)
    return found


def _is_settled(weight: Weight) -> bool:
    """Whether the value is on the grid, so that quantizing it changes nothing."""
    return bool(weight.how) or torch.equal(weight.site.quantize(weight.value, constant=True), weight.value)
