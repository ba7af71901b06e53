# SPDX-License-Identifier: Apache-2.0
"""quantize(): a float model, calibration data and a recipe in, the converted tree out.

It owns the order of a run. What a recipe may say is recipe.py, which function a step calls steps.py, prepare, calibrate
and convert are lifecycle.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyquant import lifecycle, tree_statistics
from pyquant import progress as shown
from pyquant.distributed import Group, guarded
from pyquant.errors import CalibrationError, InputError, PhaseError, PolicyError
from pyquant.policy import Policy
from pyquant.recipe import Recipe, Step
from pyquant.steps import Steps
from pyquant.stream import Stream
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
    requantize: bool = False,
    stream: Stream | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
    log: Log | None = None,
    group: Group | None = None,
) -> QModule:
    """The converted tree of `fp` by a recipe: prepare, the steps of the recipe, calibrate, convert.

        q = pyquant.quantize(fp, batches, recipe="w4a16")

    batches: calibration data, as `calibrate` takes it. Each step reads it once or several times: give a list or a data
        loader. A generator is read into a list first where the recipe has steps, which is said.
    recipe: the name of one that comes with pyquant (`pyquant.Recipe.preset`), a file, a Recipe, or a Policy (no steps).
    unused: globs over paths of sites that no graph will use, as of convert.
    checkpoint, requantize: the folder of a checkpoint that another tool quantized, as of prepare. Its integers stay;
        steps that would change them are left out, which is said.
    stream: for a model that is larger than memory, as of prepare.
    progress: None shows bars on a terminal, True lines elsewhere too (pyquant/progress.py), False never.
    resume: a folder where steps that decide weights put each finished block and calibrate its statistics, and from
        which a run that was ended goes on, with the same bits. It is made where it does not exist.
    log: called with each line of what a reader should know, such as a step that this model does not allow; by default
        these go to the logger `pyquant.oneshot` as warnings.
    group: processes that all call this, each with the same model and recipe and its own batches, a list or data loader
        of known length (docs/distributed.md). All get the same tree, of all the batches; `resume` is a folder for each.

    `q.state.recipe` is the recipe, `q.state.log` what each step decided (pyquant.decision.Decision) and `q.state.notes`
    the lines of `log`; `save_quantized` writes all three. `fp` is not changed.

    Raises what prepare, calibrate, convert and the algorithms raise; PolicyError for a recipe that does not exist,
    InputError for `resume` that cannot be a folder; RankError for an error of any process of the group.
    """
    with guarded(group):
        chosen = Recipe.of(recipe)
        _check_resume(resume)
        q = lifecycle.prepare(fp, chosen.policy, checkpoint=checkpoint, requantize=requantize, stream=stream)
        return run(q, batches, chosen, unused=unused, progress=progress, resume=resume, log=log, group=group)


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
    group: Group | None = None,
) -> QModule:
    """The steps of `recipe`, calibrate and convert on `q`, a tree that prepare just made with the recipe's policy.

    Returns `q`. step: entered with the name of each step, `convert` is the last; the other arguments and the errors are
    those of `quantize`. PolicyError for a tree with another policy.
    """
    enter = step or _nothing
    with guarded(group):
        calibrate_by(q, batches, recipe, progress=progress, resume=resume, log=log, step=enter, group=group)
        with enter("convert"):
            lifecycle.convert(q, unused=unused)
        if group is not None:
            group.same("the converted tree", tree_statistics.checksum(q))
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
    group: Group | None = None,
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
    _check_resume(resume)
    data = _again(batches, recipe, log or _warn)
    folder = None if resume is None else Path(resume)
    if group is not None and group.size > 1:
        progress, log = (progress, log) if group.first else (False, log or _silent)
        folder = None if folder is None else folder / f"rank-{group.rank}-of-{group.size}"
        group.same("the model or recipe", f"{recipe.to_dict()} {tree_statistics.checksum(q)}")
    steps = Steps(q, progress, log or _warn, group)
    came = _decided_before(q)
    q.state.recipe = recipe
    chosen = [each for each in whole(recipe) if each.stage in only]
    show = False if len(chosen) == 1 else progress
    with shown.bar(chosen, desc=recipe.name, unit="step", show=show) as bar:
        for number, each in enumerate(bar, 1):
            bar.set_description(f"{recipe.name}: {each.algorithm}")
            with (step or _nothing)(each.algorithm):
                if came and each.stage == "fold":
                    steps.say(f"{each.algorithm} left out: {came}")
                else:
                    own = None if folder is None else folder / f"{number}-{each.algorithm}"
                    steps.run(each, data, possible=bool(came), resume=own)


def whole(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe, with calibrate at its place where it is not listed."""
    if any(step.algorithm == "calibrate" for step in recipe.steps):
        return recipe.steps
    before = tuple(step for step in recipe.steps if step.stage in ("fold", "decide"))
    return (*before, Step("calibrate"), *recipe.steps[len(before) :])


def _decided_before(q: QModule) -> str:
    """How many weights have integers already (of a checkpoint), and from where; "" for none."""
    weights = [site for site in q.all_sites() if site.role.is_kernel and site.spec is not None]
    came = [site for site in weights if site.decided]
    return f"{len(came)} of {len(weights)} weights are decided already ({came[0].decided})" if came else ""


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


def _check_resume(resume: str | Path | None) -> None:
    if resume is None:
        return
    try:
        Path(resume).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"resume={str(resume)!r} cannot be a folder ({error.strerror}); name another place") from error


def _warn(line: str) -> None:
    logger.warning("%s", line)


def _silent(line: str) -> None:
    """Rank 0 says it."""


def _nothing(name: str) -> AbstractContextManager[None]:
    return nullcontext()
