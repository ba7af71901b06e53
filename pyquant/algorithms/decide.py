# SPDX-License-Identifier: Apache-2.0
"""Choosing weights one by one from the second moments of their inputs, and deciding a tree so.

It owns how the moments come by: one pass of the float model where memory allows, else block by block (blocks.py). What
is chosen is the algorithm's (gptq.py, range_search.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyquant import progress as shown
from pyquant.algorithms.blocks import Block, Propagate, Statistics, run_blocks
from pyquant.algorithms.log import agree, record
from pyquant.algorithms.passes import run_batches
from pyquant.algorithms.statistics import Moment, Moments
from pyquant.decision import Decision
from pyquant.distributed import Group, guarded
from pyquant.errors import CalibrationError
from pyquant.qparams import QParams
from pyquant.weight import Weight
from pyquant.wrap import Phase, QModule, phase, structure

__all__ = ["Choice", "Choose", "Way", "decide"]


@dataclass(frozen=True)
class Choice:
    """What an algorithm chose for a weight: its grid, the integers (None: the nearest ones), and the record of it."""

    qparams: QParams
    integers: Tensor | None
    decision: Decision

    def apply(self, weight: Weight) -> None:
        """Decide the weight so."""
        weight.decide(self.qparams, self.decision.how, self.integers, final=False)


Choose = Callable[[Weight, Sequence[Moment | None]], Choice]


@dataclass(frozen=True)
class Way:
    """How data reaches an algorithm.

    memory: bytes that second moments may take; where those of all weights take more, the model runs block by block.
    propagate: what a block gets then, see run_blocks; "quantized" always runs block by block. statistics: as of
    run_blocks. resume: a folder for a run that may be ended and go on. progress, group: as of calibrate.
    """

    memory: int = 1 << 28
    propagate: Propagate = "float"
    statistics: Statistics = "gram"
    resume: Path | None = None
    progress: bool | None = None
    group: Group | None = None


def decide(
    q: QModule, batches: Iterable[Any], weights: Sequence[Weight], choose: Choose, way: Way, what: str, **settings: Any
) -> list[Decision]:
    """Decide `weights` as `choose` does from the moments of each weight's matrices, and add the records to the log.

    With float propagation all moments are those of the float model, whichever way the data takes. settings: what else
    the result depends on, for `resume`.
    """
    whole = sum(Moments.bytes_of([weight]) for weight in _leaders(q, weights))
    if way.propagate == "float" and way.resume is None and whole <= way.memory:
        with guarded(way.group):
            decisions = _in_one_pass(q, batches, weights, choose, way, what)
    else:
        paths = {weight.path for weight in weights}

        def solve(block: Block) -> list[Decision]:
            done = []
            for weight in block.weights:
                choice = _timed(choose, weight, block.moments.of(weight))
                choice.apply(weight)
                done.append(choice.decision)
            return done

        decisions = run_blocks(
            q, batches, solve, propagate=way.propagate, statistics=way.statistics, resume=way.resume,
            choose=lambda weight: weight.path in paths, settings=settings, progress=way.progress, verb=what,
            group=way.group,
        )  # fmt: skip
    agree(q, way.group, what)
    record(q, decisions)
    return decisions


def _in_one_pass(
    q: QModule, batches: Iterable[Any], weights: Sequence[Weight], choose: Choose, way: Way, what: str
) -> list[Decision]:
    moments = Moments(q, weights)
    progress = way.progress if way.group is None or way.group.first else False
    with phase(q, Phase.FLOAT), moments.watching():
        run_batches(q, batches, what, progress)
    moments.merge(way.group)
    decisions = []
    for weight in shown.bar(weights, desc=what, unit="weight", show=progress):
        choice = _timed(choose, weight, moments.of(weight))
        choice.apply(weight)
        decisions.append(choice.decision)
    return decisions


def _timed(choose: Choose, weight: Weight, moments: Sequence[Moment | None]) -> Choice:
    if not all(moment is None or bool(moment.gram.isfinite().all()) for moment in moments):
        raise CalibrationError(
            f"the inputs of {weight.path!r} have NaN or infinite values, or squares beyond float32; repair the data or "
            "the model"
        )
    began = time.perf_counter()
    choice = choose(weight, moments)
    return replace(choice, decision=replace(choice.decision, seconds=time.perf_counter() - began))


def _leaders(q: QModule, weights: Sequence[Weight]) -> list[Weight]:
    """Of linears that share an input, the first."""
    leaders = structure.shared_inputs(q)
    first: dict[QModule, Weight] = {}
    for weight in weights:
        first.setdefault(leaders.get(weight.module, weight.module), weight)
    return list(first.values())
