# SPDX-License-Identifier: Apache-2.0
"""A tree whose weights are decided block by block, each with what it gets from the blocks before it.

It owns the order: collect, solve, propagate, free; and which weights are solved when. Recording what blocks are called
with is block_inputs.py, the files of a run block_files.py, how a weight is decided the algorithm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyquant import autocast
from pyquant import progress as shown
from pyquant.algorithms.block_files import RunFolder, fingerprint
from pyquant.algorithms.block_inputs import Call, Shelf, record
from pyquant.algorithms.statistics import Moments
from pyquant.batch import is_batch
from pyquant.decision import Decision
from pyquant.distributed import Group, guarded
from pyquant.errors import CalibrationError
from pyquant.stream import watching
from pyquant.weight import Weight, weights
from pyquant.wrap import Phase, QModule, phase, structure

__all__ = ["Block", "Samples", "Solve", "run_blocks"]

Propagate = Literal["float", "quantized"]
Statistics = Literal["gram", "cross"]


@dataclass(frozen=True)
class Samples:
    """What one block is called with, and what the float model has there: for algorithms that run the block."""

    module: QModule
    number: int
    calls: Sequence[Call]
    floats: Sequence[Call]

    def __len__(self) -> int:
        return len(self.calls)

    def target(self, sample: int) -> Tensor:
        """What the block returns in the float model, on float inputs (and what the model adds after the block)."""
        return self.floats[sample].hidden

    def output(self, sample: int, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the block returns on what it gets from the decided blocks before it, to be compared with `target`.

        weights: by their names in the block, instead of its own; gradients reach them.
        """
        call = self.calls[sample]
        addend = call.added.get(self.number + 1)
        out = call.run(self.number, self.module, weights)
        return out if addend is None else out + addend


@dataclass(frozen=True)
class Block:
    """What a solver gets: weights to decide, all of one block, or all that are in no block (`module` is None then).

    path: of the module. moments: what the weights multiply, empty where none were asked for or no data came by.
    samples: with quantized propagation, the block's calls; None without, and outside of blocks.
    """

    path: str
    module: QModule | None
    weights: tuple[Weight, ...]
    moments: Moments
    samples: Samples | None = None


Solve = Callable[[Block], Sequence[Decision]]


def run_blocks(
    q: QModule,
    batches: Iterable[Any],
    solve: Solve,
    *,
    propagate: Propagate = "float",
    statistics: Statistics | None = "gram",
    choose: Callable[[Weight], bool] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    progress: bool | None = None,
    verb: str = "blocks",
    group: Group | None = None,
) -> list[Decision]:
    """Give `solve` the weights of each block after the other, in the order in which they run, then those in no block.

    `solve` decides weights (Weight.decide) and returns what is to be logged; weights that it leaves stay as they are.

    propagate: what a block gets: "float", the float model's values; "quantized", what the decided blocks before it
    make, with the float model's values beside them. Of several towers, later ones then see the decided earlier ones.
    statistics: "gram" (Moment.gram of what a block gets), "cross" (that and Moment.cross; with quantized propagation),
    or None. choose: which weights; the default takes linear weights that are open. settings: whatever else decides the
    result, as JSON values. resume: a folder with a file for each decided block, from which a run that ended early goes
    on and gives the same bits. progress: as of calibrate; `verb` names the bar. group: processes that all call this
    with other batches; each goes on with its own block inputs, second moments are those of all (Moments.merge).

    Rows of padding are no part of it. Memory: the hidden states of all batches (twice for quantized propagation; of a
    streamed tree those that fit Stream.cache_gb, the rest lies in files), the
    masks and tables of each kind once, one block's moments. Raises PhaseError outside of the CALIBRATE phase and for an
    edited float model (QModule.require_unedited), CalibrationError for no batches, InputError for batches with a KV
    cache, CheckpointError for a folder of another run.
    """
    with guarded(group):
        return _run_blocks(
            q, batches, solve, propagate, statistics, choose or _is_open, settings, resume, progress, verb, group
        )


def _run_blocks(
    q: QModule,
    batches: Iterable[Any],
    solve: Solve,
    propagate: Propagate,
    statistics: Statistics | None,
    choose: Callable[[Weight], bool],
    settings: Mapping[str, Any] | None,
    resume: Path | None,
    progress: bool | None,
    verb: str,
    group: Group | None,
) -> list[Decision]:
    q.require(Phase.CALIBRATE, verb)
    data = list(batches) if isinstance(batches, Iterable) else [batches]
    if not data or not all(map(is_batch, data)):
        odd = next((type(each).__name__ for each in data if not is_batch(each)), "no batches")
        raise CalibrationError(
            f"{verb} got {odd}; expected batches: dicts of keyword arguments, tuples or lists of positional ones, or "
            "tensors"
        )
    q.require_unedited(verb)
    marks = {"verb": verb, "propagate": propagate, "statistics": statistics, **(settings or {})}
    folder = None if resume is None else RunFolder.of(resume, fingerprint(q, data, marks))
    run = _Run(q, data, solve, propagate, statistics, choose, folder, group)
    with autocast.off(), torch.no_grad(), phase(q, Phase.FLOAT), q.state.collecting(), watching(q.state.stream, q):
        return run.run(verb, progress if group is None or group.first else False)


def _is_open(weight: Weight) -> bool:
    return weight.open and weight.is_linear


class _Run:
    """One run: the state between its blocks."""

    def __init__(
        self,
        q: QModule,
        data: list[Any],
        solve: Solve,
        propagate: Propagate,
        statistics: Statistics | None,
        choose: Callable[[Weight], bool],
        folder: RunFolder | None,
        group: Group | None,
    ) -> None:
        self.group = None if group is None or group.size == 1 else group
        self.q, self.data, self.solve, self.folder = q, data, solve, folder
        self.quantized, self.statistics = propagate == "quantized", statistics
        self.towers = {tower.path: tower for tower in structure.blocks(q)}
        self.chosen = {
            block: tuple(filter(choose, weights(block))) for tower in self.towers.values() for block in tower.modules
        }
        inside = {weight.path for block in self.chosen for weight in weights(block)}
        self.outside = tuple(w for w in weights(q) if w.path not in inside and choose(w))
        self.left: list[Weight] = []  # of blocks that no data reached
        self.log: list[Decision] = []
        self.number = 0
        self.shelf = Shelf(q.state.stream, copies=2 if self.quantized else 1)

    def run(self, verb: str, show: bool | None) -> list[Decision]:
        with shown.bar(total=len(self.chosen) + 1, desc=verb, unit="block", show=show) as bar:
            moments = Moments(self.q, self.outside)
            watch = moments.watching() if self._sees(self.outside) and not self.quantized else nullcontext()
            with watch:
                walk = shown.bar(self.data, desc=f"{verb}: inputs of blocks", unit="batch", show=show, leave=False)
                floats, places = record(self.q, walk, list(self.towers.values()), self.shelf)
            if self._sees(self.outside) and not self.quantized:
                moments.merge(self.group)
            for place, path in enumerate(self._order(places)):
                calls = floats[path]
                if self.quantized and place == 0:
                    calls = [call.twin() for call in calls]
                elif self.quantized and calls:
                    calls = record(self.q, self.data, [self.towers[path]], self.shelf)[0][path]
                self._tower(self.towers[path], floats.pop(path), calls, bar)
            if self.quantized and self._sees(self.outside):
                with moments.watching():
                    record(self.q, self.data, ())
                moments.merge(self.group)
            self._decide(Block("", None, self.outside, moments))
            self._decide(Block("", None, tuple(self.left), Moments(self.q, self.left)))
            bar.update()
        return self.log

    def _order(self, places: dict[str, int]) -> list[str]:
        """The towers in the order in which they run; on a rank, one may have no data."""
        if self.group is not None:
            every = self.group.gather("the order of towers", places)
            places = {path: max(each[path] for each in every) for path in places}
        return sorted(places, key=lambda path: places[path])

    def _any(self, number: int, ran: Sequence[object]) -> bool:
        return bool(ran) if self.group is None else any(self.group.gather(f"block {number} reached", bool(ran)))

    def _sees(self, chosen: Sequence[Weight]) -> bool:
        return self.statistics is not None and bool(chosen)

    def _tower(self, tower: structure.Blocks, floats: list[Call], calls: list[Call], bar: Any) -> None:
        assert len(floats) == len(calls), f"{tower.path!r} ran {len(floats)} times, then {len(calls)}"
        last = max((n for n, block in enumerate(tower.modules) if self.chosen[block]), default=-1)
        for number, block in enumerate(tower.modules[: last + 1]):
            ran = [(f, c) for f, c in zip(floats, calls, strict=True) if number < len(f.arguments)]
            if self._any(number, ran):
                self._block(number, block, [f for f, _ in ran], [c for _, c in ran])
            else:
                self.left += self.chosen[block]
            bar.update()
        bar.update(len(tower.modules) - last - 1)

    def _block(self, number: int, block: QModule, floats: list[Call], calls: list[Call]) -> None:
        chosen = self.chosen[block]
        moments = Moments(self.q, chosen)
        sees = self._sees(chosen) and not self._is_saved()
        for own, call in zip(floats, calls, strict=True):
            if not self.quantized:
                with moments.watching() if sees else nullcontext():
                    own.go_on(number, own.run(number, block))
                continue
            with moments.recording() if sees and self.statistics == "cross" else nullcontext() as rows:
                out = own.run(number, block)
            own.go_on(number, out)
            if sees:
                with moments.watching(rows):
                    call.run(number, block)
        if sees:
            moments.merge(self.group)
        samples = Samples(block, number, calls, floats) if self.quantized else None
        self._decide(Block(block.path, block, chosen, moments, samples))
        if self.quantized:
            for call in calls:
                call.go_on(number, call.run(number, block))

    def _is_saved(self) -> bool:
        if self.folder is None:
            return False
        has = self.folder.has(self.number)
        return has if self.group is None else all(self.group.gather(f"block file {self.number}", has))

    def _decide(self, block: Block) -> None:
        """Let the solver decide the block's weights, or the file of an earlier run."""
        saved = self.folder if block.weights and self._is_saved() else None
        number, self.number = self.number, self.number + 1
        if not block.weights:
            return
        known = {weight.path: weight for weight in block.weights}
        log = None if saved is None else saved.load(number, block.path, known)
        if log is None:
            log = list(self.solve(block))
            if self.folder is not None:
                self.folder.save(number, block.path, [w for w in block.weights if w.how], log)
        self.log += log
