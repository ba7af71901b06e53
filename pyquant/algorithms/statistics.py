# SPDX-License-Identifier: Apache-2.0
"""Second moments of what weights multiply: H = X^T X over all rows of the calibration data.

It owns watching the inputs while a tree runs in the FLOAT phase, once for linears that share an input. Solving is the
algorithms'; running a model block by block is calibration/blocks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.weight import Weight
from pyquant.wrap import QModule, structure

__all__ = ["Moment", "Moments"]


@dataclass
class Moment:
    """The second moment of the inputs of one matrix: gram (in, in) float32 = X^T X over `rows` rows."""

    gram: Tensor
    rows: int = 0

    @property
    def diagonal(self) -> Tensor:
        """(in,): the sum of squares of each column's inputs."""
        return self.gram.diagonal()


class Moments:
    """The second moments of some weights of a tree, while a `with` block of `watching` runs."""

    def __init__(self, q: QModule, weights: Iterable[Weight]) -> None:
        leaders = structure.shared_inputs(q)
        self._leader = {w.path: leaders.get(w.module, w.module) for w in weights}
        self._modules = {w.module: w for w in weights}
        self._found: dict[tuple[QModule, int], Moment] = {}

    def of(self, weight: Weight) -> list[Moment | None]:
        """One for each matrix of the weight (an expert); None for one that saw no row."""
        leader = self._leader[weight.path]
        return [self._found.get((leader, index)) for index in range(weight.matrices)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Accumulate what the weights multiply while the block runs."""
        with ExitStack() as stack:
            for module in dict.fromkeys(self._leader.values()):
                weight = self._modules.get(module) or Weight(module, "weight")
                handle = weight.watch(_Accumulate(self._found, module))
                stack.callback(handle.remove)
            yield

    @staticmethod
    def bytes_of(weights: Sequence[Weight]) -> int:
        """The memory that the moments of these weights take at most."""
        return sum(4 * w.matrices * w.value.shape[-1] ** 2 for w in weights)


class _Accumulate:
    def __init__(self, found: dict[tuple[QModule, int], Moment], module: QModule) -> None:
        self._found, self._module = found, module

    @torch.no_grad()
    def __call__(self, index: int, rows: Tensor) -> None:
        key = (self._module, index)
        if key not in self._found:
            width = rows.shape[-1]
            self._found[key] = Moment(torch.zeros(width, width, dtype=torch.float32, device=rows.device))
        moment = self._found[key]
        x = rows.detach().float()
        moment.gram.addmm_(x.T, x)
        moment.rows += len(x)
