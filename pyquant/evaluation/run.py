# SPDX-License-Identifier: Apache-2.0
"""pyquant.evaluate: tasks, on several subjects, side by side.

It owns the order of the work. Tasks are text.py, likelihood.py, questions.py, harness.py and throughput.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from pyquant.calibration.fingerprint import Fingerprint
from pyquant.errors import EvaluationError
from pyquant.evaluation.harness import LmEval
from pyquant.evaluation.order import reference_of
from pyquant.evaluation.overlap import overlap
from pyquant.evaluation.result import Evaluation, Settings, TaskResult
from pyquant.evaluation.subjects import Subject, as_subject
from pyquant.verify import Session


class Task(Protocol):
    """What is measured on each subject."""

    @property
    def name(self) -> str:
        """What tables and results call it."""

    def batches(self) -> Iterable[Mapping[str, Tensor]]:
        """Its samples as a model's arguments, for the check against calibration data."""

    def run(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> TaskResult:
        """The numbers of each subject and pair. Raises EvaluationError."""


def evaluate(
    subjects: Mapping[str, nn.Module | Session | Subject],
    tasks: Sequence[Task | LmEval],
    *,
    calibration: Fingerprint | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
    files_limit: int | None = None,
) -> Evaluation:
    """Measure each subject on the same samples, and each pair of them: difference with a paired bootstrap interval,
    agreement, KL divergence.

    subjects: name -> a float model, a quantized tree, or a `verify.Session` of a bundle. The first float model is the
        reference, else the first quantized tree. They stay as they are.
    tasks: `evaluation.Perplexity`, `Likelihood`, `Questions`, `LmEval`, `Throughput`, or an object with the methods of
        Task.
    calibration: what the subjects were calibrated on (`calibration.fingerprint(batches)`); samples that are in it are
        counted.
    seed, resamples, confidence: of the bootstrap. files_limit: bundles run only the first so many units of a task, for
        reference runtimes are slow; pairs are over what both ran.

    Raises EvaluationError for what cannot be measured or compared, ImportError for a package that a task needs.
    """
    if not subjects or not tasks:
        raise EvaluationError("an evaluation wants at least one subject and one task")
    found = tuple(as_subject(name, given) for name, given in subjects.items())
    names = [subject.name for subject in found]
    if len(set(names)) < len(names):
        raise EvaluationError(f"subjects have names of their own, got {', '.join(names)}")
    settings, reference = Settings(seed, resamples, confidence, files_limit), reference_of(found)
    results: list[TaskResult] = []
    for task in tasks:
        if isinstance(task, LmEval):
            results += task.run_all(found, reference, settings)
            continue
        result = task.run(found, reference, settings)
        if calibration is not None and (seen := overlap(calibration, task.batches())).of:
            result = replace(result, overlap=seen)
        results.append(result)
    return Evaluation(tuple(results), found[reference].name, settings)
