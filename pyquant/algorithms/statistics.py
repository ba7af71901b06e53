# SPDX-License-Identifier: Apache-2.0
"""Second moments of what weights multiply: H = X^T X over all rows of the calibration data.

It owns watching the inputs while a tree runs in the FLOAT phase, once for linears that share an input and without
padding. Solving is the algorithms'; running a model block by block is blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant import ops
from pyquant.distributed import Group
from pyquant.weight import See, Weight
from pyquant.wrap import QModule, structure

__all__ = ["Moment", "Moments", "Rows"]

Rows = dict[QModule, list[Tensor]]


@dataclass
class Moment:
    """The second moment of the inputs of one matrix: gram (in, in) float32 = X^T X over `rows` rows.

    cross (in, in) float32 = F^T X, where F are the inputs that the same matrix has in the float model, row for row:
    where both are known for all rows (Moments.watching), else None.
    """

    gram: Tensor
    rows: int = 0
    cross: Tensor | None = None

    @property
    def diagonal(self) -> Tensor:
        """(in,): the sum of squares of each column's inputs."""
        return self.gram.diagonal()

    def to(self, device: torch.device | str) -> Moment:
        """The same on another device."""
        return Moment(self.gram.to(device), self.rows, None if self.cross is None else self.cross.to(device))


class Moments:
    """The second moments of some weights of a tree, while a `with` block of `watching` runs."""

    def __init__(self, q: QModule, weights: Iterable[Weight]) -> None:
        self._state = q.state
        leaders = structure.shared_inputs(q)
        self._leader = {w.path: leaders.get(w.module, w.module) for w in weights}
        self._modules = {w.module: w for w in weights}
        self._found: dict[tuple[QModule, int], Moment] = {}

    def of(self, weight: Weight) -> list[Moment | None]:
        """One for each matrix of the weight (an expert); None for one that saw no row."""
        leader = self._leader[weight.path]
        return [self._found.get((leader, index)) for index in range(weight.matrices)]

    @contextmanager
    def watching(self, beside: Rows | None = None) -> Iterator[None]:
        """Accumulate what the weights multiply while the block runs.

        beside: the rows that the same weights multiply in the float model at the same places, as `recording` gave them:
        with these, `Moment.cross` too. A matrix of experts has none: rows may go to another expert there.
        """

        def accumulate(module: QModule) -> See:
            return _Accumulate(self._found, module, beside)

        with self._hooked(accumulate):
            yield

    @contextmanager
    def recording(self) -> Iterator[Rows]:
        """The rows that the weights multiply while the block runs, in the order of calls."""
        found: Rows = {}

        def keep(module: QModule) -> See:
            def see(index: int, rows: Tensor) -> None:
                if getattr(module, "experts", 1) == 1:
                    found.setdefault(module, []).append(rows.detach())

            return see

        with self._hooked(keep):
            yield found

    @contextmanager
    def _hooked(self, see_of: Callable[[QModule], See]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._state.collecting())
            for module in dict.fromkeys(self._leader.values()):
                weight = self._modules.get(module) or Weight(module, "weight")
                stack.callback(weight.watch(see_of(module)).remove)
            yield

    def merge(self, group: Group | None) -> None:
        """Those of the rows of all ranks, for each rank of the group.

        The float32 sums of the ranks are added up in their order: beside the sum of one process over all rows, as many
        more roundings as there are ranks, each of at most 2^-24 of the sum of magnitudes. Raises RankError.
        """
        if group is None or group.size == 1:
            return
        for leader in dict.fromkeys(self._leader.values()):
            for index in range(int(getattr(leader, "experts", 1))):
                own = self._found.get((leader, index))
                total = group.fold(f"second moments of {leader.path}", None if own is None else own.to("cpu"), _sum)
                if total is not None:
                    self._found[leader, index] = total.to(leader.get_parameter("weight").device)

    @staticmethod
    def bytes_of(weights: Sequence[Weight]) -> int:
        """The memory that the moments of these weights take at most."""
        return sum(4 * w.matrices * w.value.shape[-1] ** 2 for w in weights)


class _Accumulate:
    def __init__(self, found: dict[tuple[QModule, int], Moment], module: QModule, beside: Rows | None) -> None:
        self._found, self._module = found, module
        self._beside = iter(beside[module]) if beside is not None and module in beside else None

    @torch.no_grad()
    def __call__(self, index: int, rows: Tensor) -> None:
        key = (self._module, index)
        x = rows.detach()
        if key not in self._found:
            self._found[key] = Moment(_zeros(x), cross=None if self._beside is None else _zeros(x))
        moment = self._found[key]
        ops.gram_accumulate_(moment.gram, x)
        moment.rows += len(x)
        if moment.cross is not None:
            assert self._beside is not None, "some rows have no float rows beside them"
            moment.cross.addmm_(next(self._beside).float().T, x.float())


def _sum(one: Moment | None, other: Moment | None) -> Moment | None:
    if one is None or other is None:
        return one or other
    cross = None if one.cross is None or other.cross is None else one.cross + other.cross
    return Moment(one.gram + other.gram, one.rows + other.rows, cross)


def _zeros(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[-1], rows.shape[-1], dtype=torch.float32, device=rows.device)
