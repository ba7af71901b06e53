# SPDX-License-Identifier: Apache-2.0
"""quantize(): a float model, calibration data and a recipe in, the converted tree out; and running a recipe's steps.

It owns which function a step of a recipe calls, and with which batches. What a recipe may say is recipe.py, the four
phases are lifecycle.py, what a step does algorithms/.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from pyquant import lifecycle
from pyquant.errors import CalibrationError, InputError, PhaseError, PolicyError
from pyquant.policy import Policy
from pyquant.recipe import Recipe, Step
from pyquant.wrap import Phase, QModule

__all__ = ["calibrate_by", "quantize", "run"]

logger = logging.getLogger(__name__)
Log = Callable[[str], None]
StepContext = Callable[[str], AbstractContextManager[None]]


def quantize(
    fp: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe | Policy | str | Path = "w4a16",
    *,
    unused: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
    log: Log | None = None,
) -> QModule:
    """The converted tree of `fp` by a recipe: prepare, the steps of the recipe, calibrate, convert.

        q = pyquant.quantize(fp, batches, recipe="w4a16")

    batches: calibration data, as `calibrate` takes it. Each step reads it once or several times: give a list or a data
        loader. A generator is read into a list first where the recipe has steps, which is said.
    recipe: the name of one that comes with pyquant (`pyquant.Recipe.preset`), a file, a Recipe, or a Policy (no steps).
    unused: globs over paths of sites that no graph will use, as of convert.
    checkpoint: the folder of a checkpoint that was trained with grids, as of prepare.
    progress: None shows bars on a terminal, True always, False never.
    resume: a folder where steps that work block by block (`tune`) put each finished block, and from which they go on
        after an interruption, with the same bits.
    log: called with each line of what a reader should know, such as a step that this model does not allow; by default
        these go to the logger `pyquant.oneshot` as warnings.

    `q.state.recipe` is the recipe, `q.state.log` what each step decided (pyquant.decision.Decision) and `q.state.notes`
    the lines of `log`; `save_quantized` writes all three. `fp` is not changed.

    Raises what prepare, calibrate, convert and the algorithms raise; PolicyError for a recipe that does not exist,
    InputError for `resume` where no step uses it.
    """
    chosen = Recipe.of(recipe)
    _check_resume(chosen, resume)
    q = lifecycle.prepare(fp, chosen.policy, checkpoint=checkpoint)
    return run(q, batches, chosen, unused=unused, progress=progress, resume=resume, log=log)


def run(
    q: QModule,
    batches: Iterable[Any],
    recipe: Recipe,
    *,
    unused: Sequence[str] = (),
    progress: bool | None = None,
    resume: str | Path | None = None,
    log: Log | None = None,
    step: StepContext | None = None,
) -> QModule:
    """The steps of `recipe`, calibrate and convert on `q`, a tree that prepare just made with the recipe's policy.

    Returns `q`. step: entered with the name of each step, `convert` is the last; the other arguments and the errors are
    those of `quantize`. PolicyError for a tree with another policy.
    """
    enter = step or _nothing
    calibrate_by(q, batches, recipe, progress=progress, resume=resume, log=log, step=enter)
    with enter("convert"):
        lifecycle.convert(q, unused=unused)
    return q


def calibrate_by(
    q: QModule,
    batches: Iterable[Any],
    recipe: Recipe,
    *,
    only: Sequence[str] = ("fold", "decide", "calibrate", "adapt"),
    progress: bool | None = None,
    resume: str | Path | None = None,
    log: Log | None = None,
    step: StepContext | None = None,
) -> None:
    """`run` without convert. only: the stages whose steps are run; ("fold",) gives a float tree in which the weights
    that a decided tree has are not decided yet."""
    if not isinstance(q, QModule):
        raise PhaseError(f"a recipe is run on the tree that pyquant.prepare returned, got {type(q).__name__}")
    q.require(Phase.CALIBRATE, "a recipe")
    if q.policy != recipe.policy:
        raise PolicyError(
            f"the tree was prepared with policy {q.policy.name!r}, and recipe {recipe.name!r} has another; use "
            "pyquant.prepare(fp, recipe.policy)"
        )
    _check_resume(recipe, resume)
    steps = [each for each in whole(recipe) if each.stage in only]
    data = _again(batches, recipe, log or _warn)
    work = _Work(q, progress, resume, log or _warn)
    q.state.recipe = recipe
    hide = None if progress is None else not progress
    with tqdm(steps, desc=recipe.name, unit="step", disable=hide, leave=None) as bar:
        for each in bar:
            bar.set_description(f"{recipe.name}: {each.algorithm}")
            with (step or _nothing)(each.algorithm):
                work.do(each, data)


def whole(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe, with calibrate at its place where it is not listed."""
    if any(step.algorithm == "calibrate" for step in recipe.steps):
        return recipe.steps
    before = tuple(step for step in recipe.steps if step.stage in ("fold", "decide"))
    return (*before, Step("calibrate"), *recipe.steps[len(before) :])


@dataclass(frozen=True)
class _Work:
    """Runs single steps on one tree."""

    q: QModule
    progress: bool | None
    resume: str | Path | None
    log: Log

    def do(self, step: Step, batches: Iterable[Any]) -> None:
        """Call the function of the step with its parameters, and its part of the data."""
        function = _FUNCTIONS[step.algorithm]
        parameters = dict(step.parameters)
        samples = parameters.pop("samples", None)
        possible = parameters.pop("where_possible", False)
        takes = inspect.signature(function).parameters
        given = {"progress": self.progress, "resume": self.resume}
        parameters |= {name: value for name, value in given.items() if name in takes}
        data = batches if samples is None else _Part(batches, samples)
        arguments = (self.q, data) if "batches" in takes else (self.q,)
        if not possible:
            function(*arguments, **parameters)
            return
        try:
            function(*arguments, **parameters)
        except (InputError, PolicyError) as error:
            self.say(f"step {step} is left out, as where_possible allows: {error}")

    def say(self, line: str) -> None:
        """Record a line, and give it to the log."""
        self.q.state.notes.append(line)
        self.log(line)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"calibrate": lifecycle.calibrate}


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


def _again(batches: Iterable[Any], recipe: Recipe, log: Log) -> Iterable[Any]:
    """`batches`, as something that can be read several times."""
    if isinstance(batches, Tensor | Mapping | str):
        raise CalibrationError(
            f"quantize takes an iterable of batches, got one {type(batches).__name__}; pass [batch] for a single batch"
        )
    if not isinstance(batches, Iterator) or not recipe.steps:
        return batches
    found = list(batches)
    log(f"the batches are an iterator, which can be read once: all {len(found)} are kept in memory for the steps")
    return found


def _check_resume(recipe: Recipe, resume: str | Path | None) -> None:
    if resume is None:
        return
    if not any("resume" in inspect.signature(_FUNCTIONS[step.algorithm]).parameters for step in recipe.steps):
        steps = ", ".join(map(str, recipe.steps)) or "none"
        raise InputError(
            f"resume={str(resume)!r}: no step of recipe {recipe.name!r} ({steps}) works block by block; leave it out"
        )


def _warn(line: str) -> None:
    logger.warning("%s", line)


def _nothing(name: str) -> AbstractContextManager[None]:
    return nullcontext()
