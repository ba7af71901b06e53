# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: for each task the numbers of each subject, and of each pair of subjects.

It owns the form, and its JSON. Tables are table.py, the statistics series.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyquant.errors import EvaluationError
from pyquant.evaluation.series import Difference, Series, paired_difference

FORMAT, VERSION = "pyquant-evaluation", 1

#: metric -> whether a larger value is the worse one. Others (of lm-eval) have no direction here.
LARGER_IS_WORSE = {"nats": True, "kl": True, "agreement": False, "exact": False, "vqa": False, "acc": False}


@dataclass(frozen=True)
class Settings:
    """How differences are judged, and how much the files of a bundle run: `files_limit` units of a task (None: all)."""

    seed: int = 0
    resamples: int = 10_000
    confidence: float = 0.95
    files_limit: int | None = None

    def difference(self, a: Series, b: Series) -> Difference:
        """`a` minus `b` on the units of both."""
        return paired_difference(a, b, resamples=self.resamples, confidence=self.confidence, seed=self.seed)


@dataclass(frozen=True)
class Scores:
    """One subject on one task. series: metric -> its number for each unit, in the task's order (nats per token of each
    window, 0 or 1 of each question). facts: numbers that are not made of units (tokens per second)."""

    subject: str
    kind: str
    series: Mapping[str, Series] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """metric -> value: means of the series, `perplexity` = exp(nats), and the facts."""
        found = {name: series.mean for name, series in self.series.items()}
        if "nats" in found:
            found["perplexity"] = _exp(found["nats"])
        return found | dict(self.facts)


@dataclass(frozen=True)
class Pair:
    """`subject` beside `base`, on the units of both. differences: metric -> subject minus base. series: what only a
    pair has, `agreement` (share of equal choices) and `kl` (KL of base to subject, in nats per token)."""

    subject: str
    base: str
    differences: Mapping[str, Difference] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Overlap:
    """How many units of a task were seen in calibration: `equal` samples, samples with an image that was seen, and
    texts of which a fifth or more was seen; `runs` is the share of all runs of tokens that were seen."""

    units: int
    of: int
    equal: int
    images: int
    runs: float


@dataclass(frozen=True)
class TaskResult:
    """One task. unit: `window`, `question`, `sample`. weight: what a series counts (`token`, `question`)."""

    name: str
    unit: str
    weight: str
    scores: tuple[Scores, ...]
    pairs: tuple[Pair, ...] = ()
    overlap: Overlap | None = None
    notes: tuple[str, ...] = ()

    def of(self, subject: str) -> Scores:
        """The scores of a subject. Raises EvaluationError for a name that is not there."""
        for scores in self.scores:
            if scores.subject == subject:
                return scores
        raise EvaluationError(
            f"task {self.name!r} has no subject {subject!r}; it has {', '.join(s.subject for s in self.scores)}"
        )

    def pair(self, subject: str, base: str) -> Pair:
        """`subject` against `base`. Raises EvaluationError for a pair that is not there."""
        for pair in self.pairs:
            if (pair.subject, pair.base) == (subject, base):
                return pair
        known = ", ".join(f"{pair.subject} against {pair.base}" for pair in self.pairs) or "none"
        raise EvaluationError(f"task {self.name!r} has no pair {subject!r} against {base!r}; it has {known}")


@dataclass(frozen=True)
class Evaluation:
    """All tasks, in the order that they were given in. `reference` is the subject that others are compared with."""

    tasks: tuple[TaskResult, ...]
    reference: str
    settings: Settings

    def __iter__(self) -> Iterator[TaskResult]:
        return iter(self.tasks)

    def __getitem__(self, name: str) -> TaskResult:
        """The task of a name. Raises EvaluationError."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise EvaluationError(f"there is no task {name!r}; there are {', '.join(task.name for task in self.tasks)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the numbers of each unit; NaN and infinities are null."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "reference": self.reference,
            "settings": vars(self.settings),
            "tasks": [_task(task) for task in self.tasks],
        }

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def _task(task: TaskResult) -> dict[str, Any]:
    return {
        "name": task.name,
        "unit": task.unit,
        "weight": task.weight,
        "scores": [
            {
                "subject": scores.subject,
                "kind": scores.kind,
                "values": {name: _number(value) for name, value in scores.values.items()},
                "series": _series(scores.series),
            }
            for scores in task.scores
        ],
        "pairs": [
            {
                "subject": pair.subject,
                "base": pair.base,
                "differences": {
                    name: {key: _number(value) for key, value in vars(each).items()}
                    for name, each in pair.differences.items()
                },
                "values": {name: _number(series.mean) for name, series in pair.series.items()},
                "series": _series(pair.series),
            }
            for pair in task.pairs
        ],
        "overlap": None if task.overlap is None else vars(task.overlap),
        "notes": list(task.notes),
    }


def _series(found: Mapping[str, Series]) -> dict[str, Any]:
    return {
        name: {
            "standard_error": _number(series.standard_error),
            "values": [_number(value) for value in series.values],
            "weights": list(series.weights),
        }
        for name, series in found.items()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
