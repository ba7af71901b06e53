# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-eval (EleutherAI's language model evaluation harness), by lm-eval itself, on each model.

It owns calling it and taking its numbers. A task's data must be on this machine, or reachable.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from pyquant.errors import EvaluationError
from pyquant.evaluation.order import ordered_pairs
from pyquant.evaluation.result import Pair, Scores, Settings, TaskResult
from pyquant.evaluation.series import Series
from pyquant.evaluation.subjects import Subject

INSTALL = "pip install 'pyquant-circle[eval]'"


@dataclass(frozen=True)
class LmEval:
    """One or more tasks by their names; each becomes a result of its own, with lm-eval's metrics.

    tokenizer: of all subjects. include: a folder with task files (.yaml) of your own, beside lm-eval's. limit: the
    first documents of each task. Files of bundles are left out, with a note: lm-eval runs models.
    """

    tasks: tuple[str, ...]
    tokenizer: Any
    include: Path | None = None
    limit: int | None = None
    batch_size: int = 1

    @property
    def name(self) -> str:
        return f"lm-eval:{','.join(self.tasks)}"

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """None: the documents are lm-eval's."""
        return iter(())

    def run_all(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> list[TaskResult]:
        """A result for each task. Raises ImportError without lm-eval, EvaluationError for a task that is not known or
        whose data is not here."""
        manager = self._manager(settings)
        models = [subject for subject in subjects if subject.model is not None]
        if not models:
            raise EvaluationError(f"{self.name}: lm-eval runs models, and files of bundles are none; add --against")
        base = subjects[reference].name
        first = next((number for number, subject in enumerate(models) if subject.name == base), 0)
        found = [self._run(subject, manager, settings) for subject in models]
        left_out = [subject.name for subject in subjects if subject.model is None]
        notes = (f"left out: {', '.join(left_out)} (lm-eval runs models, not files)",) if left_out else ()
        return [_result(task, models, [each[task] for each in found], first, settings, notes) for task in found[0]]

    def _manager(self, settings: Settings) -> Any:
        try:
            import_module("lm_eval.models.huggingface")  # needs accelerate too
            tasks: Any = import_module("lm_eval.tasks")
        except ImportError as error:
            raise ImportError(f"{self.name} needs lm-eval, which is not installed ({error}): {INSTALL}") from error
        if self.include is not None and not self.include.is_dir():
            raise EvaluationError(f"the folder of lm-eval tasks {str(self.include)!r} does not exist")
        include = None if self.include is None else str(self.include)
        manager: Any = None
        if include is not None:  # reading all of lm-eval's own takes half a minute
            manager = tasks.TaskManager(include_path=include, include_defaults=False)
        if manager is None or not set(self.tasks) <= set(manager.all_tasks):
            manager = tasks.TaskManager(include_path=include)
        self._require_known(manager.all_tasks)
        try:
            manager.load(list(self.tasks))
        except Exception as error:  # whatever a task's files and the data sets library make of it
            first = next((line for line in str(error).split("\n") if line.strip()), "no message")
            raise EvaluationError(
                f"{self.name}: lm-eval cannot load it ({type(error).__name__}: {first}); its data set is fetched from "
                f"the hub: run it once where there is a network and keep that cache, or give a folder of task files "
                f"whose data is local (--lm-eval-tasks DIR)"
            ) from error
        return manager

    def _require_known(self, known: Sequence[str]) -> None:
        for name in self.tasks:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3)
                hint = f"; near names: {', '.join(near)}" if near else ""
                raise EvaluationError(f"lm-eval has no task {name!r} (of {len(known)}){hint}")

    def _run(self, subject: Subject, manager: Any, settings: Settings) -> dict[str, tuple[dict[str, float], Any]]:
        """task -> (metric -> lm-eval's number, its samples)."""
        lm_eval: Any = import_module("lm_eval")
        huggingface: Any = import_module("lm_eval.models.huggingface")
        model = huggingface.HFLM(pretrained=subject.model, tokenizer=self.tokenizer, batch_size=self.batch_size)
        out = lm_eval.simple_evaluate(
            model,
            tasks=list(self.tasks),
            task_manager=manager,
            limit=self.limit,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=settings.seed,
        )
        assert out is not None, "lm-eval returns results on the first rank, and there is one"
        found = {}
        for task, metrics in out["results"].items():
            if task in out["samples"]:  # not a group, which repeats its tasks
                numbers = {
                    key.replace(",none", ""): float(value)
                    for key, value in metrics.items()
                    if isinstance(value, int | float) and "," in key and "_stderr" not in key
                }
                found[task] = (numbers, out["samples"][task])
        return found


def _result(
    task: str,
    models: Sequence[Subject],
    found: Sequence[tuple[dict[str, float], Any]],
    reference: int,
    settings: Settings,
    notes: tuple[str, ...],
) -> TaskResult:
    scores = []
    for subject, (numbers, samples) in zip(models, found, strict=True):
        series = {metric: each for metric, value in numbers.items() if (each := _series(metric, value, samples))}
        facts = {metric: value for metric, value in numbers.items() if metric not in series}
        scores.append(Scores(subject.name, subject.kind, series, facts))
    pairs = []
    for of, base in ordered_pairs(models, reference):
        both = [metric for metric in scores[of].series if metric in scores[base].series]
        differences = {
            metric: settings.difference(scores[of].series[metric], scores[base].series[metric]) for metric in both
        }
        pairs.append(Pair(scores[of].subject, scores[base].subject, differences))
    return TaskResult(f"lm-eval:{task}", "document", "document", tuple(scores), tuple(pairs), notes=notes)


def _series(metric: str, value: float, samples: Sequence[Mapping[str, Any]]) -> Series | None:
    """The metric of each document, in their order; None where lm-eval's number is not their mean (a corpus metric)."""
    name, _, wanted = metric.partition(",")
    rows = [row for row in samples if row.get("filter", "none") == (wanted or "none")]
    each = [row.get(name) for row in sorted(rows, key=lambda row: int(row["doc_id"]))]
    numbers = [float(number) for number in each if isinstance(number, int | float)]
    if not numbers or len(numbers) != len(each):
        return None
    series = Series.of(numbers)
    return series if math.isclose(series.mean, value, rel_tol=1e-9, abs_tol=1e-12) else None
