# SPDX-License-Identifier: Apache-2.0
"""What each channel of a linear's input looks like over the calibration data: its ends, mean size and second moment.

It owns running a tree in the FLOAT phase and watching the inputs, once for linears that share an input and without
padding, in memory of a few rows. Full second moments are statistics.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.algorithms.passes import run_batches
from pyquant.distributed import Group, guarded
from pyquant.weight import Weight
from pyquant.wrap import Phase, QModule, phase, structure

__all__ = ["ChannelStats", "Channels"]


@dataclass
class ChannelStats:
    """Of the inputs of one matrix, each (in,) float32 but `rows`: least and largest value (0 at least within them), sum
    of sizes and of squares."""

    low: Tensor
    high: Tensor
    size: Tensor
    square: Tensor
    rows: int = 0

    @classmethod
    def empty(cls, like: Tensor) -> ChannelStats:
        low, high, size, square = torch.zeros(4, like.shape[-1], dtype=torch.float32, device=like.device)
        return cls(low, high, size, square)

    @property
    def largest(self) -> Tensor:
        """The largest size of each channel."""
        return torch.maximum(-self.low, self.high)

    def add(self, rows: Tensor) -> None:
        """Take rows (N, in) in."""
        if not len(rows):
            return
        x = rows.detach().float()
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        self.size += x.abs().sum(0)
        self.square += x.square().sum(0)
        self.rows += len(x)

    def to(self, device: torch.device | str) -> ChannelStats:
        """The same on another device."""
        low, high, size, square = (t.to(device) for t in (self.low, self.high, self.size, self.square))
        return ChannelStats(low, high, size, square, self.rows)

    def merged(self, other: ChannelStats) -> ChannelStats:
        """Those of the rows of both."""
        return ChannelStats(
            torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.size + other.size,
            self.square + other.square, self.rows + other.rows,
        )  # fmt: skip


class Channels:
    """The statistics of the inputs of some linears of a tree, once data was collected."""

    def __init__(self, q: QModule, linears: Iterable[QModule]) -> None:
        self._tree = q
        leaders = structure.shared_inputs(q)
        self._leader = {linear: leaders.get(linear, linear) for linear in linears}
        self._found: dict[QModule, dict[int, ChannelStats]] = {}

    def of(self, linear: QModule) -> dict[int, ChannelStats]:
        """The index of a matrix of the linear (an expert) -> its statistics, for those that data reached."""
        return self._found.get(self._leader[linear], {})

    @torch.no_grad()
    def collect(
        self, batches: Iterable[Any], verb: str, progress: bool | None = None, group: Group | None = None
    ) -> None:
        """Run the tree on every batch in float, see run_batches. With a group the statistics are those of the batches
        of all ranks: ends exactly, sums added up in the order of ranks."""
        with guarded(group), ExitStack() as stack:
            for leader in dict.fromkeys(self._leader.values()):
                found = self._found.setdefault(leader, {})
                stack.callback(Weight(leader, "weight").watch(_Accumulate(found)).remove)
            stack.enter_context(phase(self._tree, Phase.FLOAT))
            stack.enter_context(self._tree.state.collecting())
            run_batches(self._tree, batches, verb, progress if group is None or group.first else False)
            if group is not None and group.size > 1:
                self._merge(group)

    def _merge(self, group: Group) -> None:
        for leader, found in self._found.items():
            sent = {index: stats.to("cpu") for index, stats in found.items()}
            device = leader.get_parameter("weight").device
            for index, stats in group.fold(f"channels of {leader.path}", sent, _merged).items():
                found[index] = stats.to(device)


def _merged(some: dict[int, ChannelStats], more: dict[int, ChannelStats]) -> dict[int, ChannelStats]:
    return some | {index: some[index].merged(each) if index in some else each for index, each in more.items()}


class _Accumulate:
    def __init__(self, found: dict[int, ChannelStats]) -> None:
        self._found = found

    @torch.no_grad()
    def __call__(self, index: int, rows: Tensor) -> None:
        if index not in self._found:
            self._found[index] = ChannelStats.empty(rows)
        self._found[index].add(rows)
