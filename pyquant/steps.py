# SPDX-License-Identifier: Apache-2.0
"""The steps of a recipe as calls: which function each name is, with which part of the data.

It owns that table, `samples` and `where_possible`. The order of steps is recipe.py, running a whole recipe oneshot.py.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyquant import algorithms, lifecycle
from pyquant.distributed import Group
from pyquant.errors import InputError, PolicyError
from pyquant.recipe import Step
from pyquant.wrap import QModule, structure

__all__ = ["Steps", "takes"]

Log = Callable[[str], None]

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "rotate": algorithms.rotate,
    "smooth": algorithms.smooth,
    "range_search": algorithms.range_search,
    "gptq": algorithms.gptq,
    "tune": algorithms.tune,
    "calibrate": lifecycle.calibrate,
    "auto16": algorithms.auto16,
}


def takes(step: Step, parameter: str) -> bool:
    """Whether the function of a step has this parameter."""
    return parameter in inspect.signature(_FUNCTIONS[step.algorithm]).parameters


@dataclass(frozen=True)
class Steps:
    """Runs single steps on one tree. progress: for the functions that take it; log: of what was left out. group: of
    processes with other parts of the data."""

    q: QModule
    progress: bool | None
    log: Log
    group: Group | None = None

    def run(self, step: Step, batches: Iterable[Any], *, possible: bool = False, resume: Path | None = None) -> None:
        """Call the function of `step` with its parameters and its part of the data.

        possible: what the model does not allow is left out, which is said, as by the parameter `where_possible`.
        resume: a folder of this step alone, for a function that takes one.
        """
        parameters = dict(step.parameters)
        samples, possible = parameters.pop("samples", None), parameters.pop("where_possible", False) or possible
        given = {"progress": self.progress, "resume": resume, "group": self.group}
        parameters |= {name: value for name, value in given.items() if takes(step, name)}
        if takes(step, "batches"):
            parameters["batches"] = self._part(step, batches, samples)
        if not possible or step.stage in ("calibrate", "adapt"):
            _FUNCTIONS[step.algorithm](self.q, **parameters)
        elif step.algorithm == "rotate":
            self._rotate(**parameters)
        else:
            self._try(step.algorithm, parameters)

    def _part(self, step: Step, batches: Iterable[Any], samples: int | None) -> Iterable[Any]:
        """The data of a step; of a group, this rank's share of `samples` spread evenly over all."""
        if samples is None:
            return batches
        if self.group is None or self.group.size == 1:
            return _Part(batches, samples)
        if not isinstance(batches, Sized) or not hasattr(batches, "__getitem__"):
            raise InputError(
                f"{step.algorithm} takes {samples} of the samples of all ranks, but the batches are no list; give each "
                "rank a list"
            )
        counts = self.group.counts(step.algorithm, len(batches))
        before, whole = sum(counts[: self.group.rank]), sum(counts)
        count = min(samples, whole)
        wanted = [number - before for number in (index * whole // count for index in range(count))]
        if own := [batches[index] for index in wanted if 0 <= index < len(batches)]:
            return own
        raise InputError(
            f"{step.algorithm} takes {count} of the {whole} samples of all ranks, and none of this one's "
            f"{len(batches)}; start fewer processes, or let it take more samples"
        )

    def say(self, line: str) -> None:
        """Record a line with the tree, and give it to the log."""
        self.q.state.notes.append(line)
        self.log(line)

    def _try(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Do it, or say why the model does not allow it; then nothing is changed."""
        try:
            _FUNCTIONS[name](self.q, **parameters)
        except (InputError, PolicyError) as error:
            self.say(f"{name} left out: {error}")

    def _rotate(self, *, residual: bool = True, heads: bool = True, towers: Any = None, **rest: Any) -> None:
        """Rotate the residual streams that can be, and the heads of all towers."""
        streams = [s for s in structure.streams(self.q) if towers is None or s.path in towers]
        free = [stream.path for stream in streams if not stream.obstacles]
        blocked = [stream.path for stream in streams if stream.obstacles]
        if not residual or (not blocked and streams):
            self._try("rotate", {"residual": residual, "heads": heads, "towers": towers, **rest})
            return
        if free:
            self._try("rotate", {"residual": True, "heads": heads, "towers": free, **rest})
        for path in blocked:  # what stands in the way is said, and changes nothing
            self._try("rotate", {"residual": True, "heads": False, "towers": [path], **rest})
        if heads and (blocked or not streams):
            self._try("rotate", {"residual": False, "heads": True, "towers": blocked or towers, **rest})


class _Part:
    """`count` of the batches, evenly spread over them; the first ones where their number is not known."""

    def __init__(self, batches: Iterable[Any], count: int) -> None:
        self._batches, self._count = batches, count

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self._batches, Sized):
            yield from itertools.islice(self._batches, self._count)
            return
        number = len(self._batches)
        count = min(self._count, number)
        wanted = [index * number // count for index in range(count)]
        if hasattr(self._batches, "__getitem__"):
            yield from (self._batches[index] for index in wanted)
        else:
            yield from (batch for index, batch in enumerate(self._batches) if index in set(wanted))
