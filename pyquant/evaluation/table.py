# SPDX-License-Identifier: Apache-2.0
"""The tables of an evaluation in a terminal: subjects side by side, and pairs below.

It owns columns and words. The numbers are result.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyquant.evaluation.result import Overlap, Pair, Scores, TaskResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pyquant.evaluation.result import Evaluation
    from pyquant.evaluation.series import Difference, Series

_SHARES = ("exact", "vqa", "agreement")
_DIGITS = {"perplexity": 2, "prefill": 1, "decode": 1}
_TITLES = {
    "nats": "nats / token",
    "perplexity": "perplexity",
    "exact": "exact match",
    "vqa": "VQA accuracy",
    "prefill": "prefill tokens/s",
    "decode": "decode tokens/s",
}


def show(evaluation: Evaluation, console: Console) -> None:
    """Print every task: its subjects, its pairs, what was seen in calibration, and notes."""
    for task in evaluation:
        console.print(subjects_table(task))
        if task.pairs:
            console.print(pairs_table(task, evaluation.settings.confidence))
        for line in lines(task):
            console.print(line, markup=False)


def lines(task: TaskResult) -> Iterator[str]:
    """What is said below the tables."""
    if task.overlap is not None:
        yield overlap_line(task.overlap, task.unit)
    yield from (f"note: {note}" for note in task.notes)


def overlap_line(found: Overlap, unit: str) -> str:
    """`calibration: 3 of 32 windows were seen (1 equal, 0 by an image; 9.4% of the runs of 16 tokens)`."""
    if not found.units:
        return f"calibration: none of the {found.of} {unit}s was seen in it"
    return (
        f"calibration: {found.units} of {found.of} {unit}s were seen in it ({found.equal} equal, {found.images} by an "
        f"image; {found.runs:.1%} of the runs of 16 tokens): the numbers above are too good"
    )


def subjects_table(task: TaskResult) -> Table:
    """A row for each subject."""
    from rich.table import Table

    metrics = list(dict.fromkeys(name for scores in task.scores for name in scores.values))
    if "exact" in metrics and "perplexity" in metrics:  # of the right answers: nats say it
        metrics.remove("perplexity")
    table = Table(title=task.name, title_justify="left")
    table.add_column("")
    for metric in metrics:
        table.add_column(_TITLES.get(metric, metric), justify="right")
    counted = any(scores.series for scores in task.scores)
    if counted:
        table.add_column(f"{task.unit}s" + ("" if task.weight == task.unit else f", {task.weight}s"), justify="right")
    for scores in task.scores:
        cells = [_value(scores, metric) for metric in metrics]
        table.add_row(scores.subject, *cells, *([_counts(task, scores)] if counted else []))
    return table


def pairs_table(task: TaskResult, confidence: float) -> Table:
    """A row for each pair: differences with their intervals, agreement, KL."""
    from rich.table import Table

    differences = list(dict.fromkeys(name for pair in task.pairs for name in pair.differences))
    own = list(dict.fromkeys(name for pair in task.pairs for name in pair.series))
    table = Table(title=f"differences, paired by {task.unit}, {confidence:.0%} intervals", title_justify="left")
    table.add_column("")
    table.add_column("minus")
    for name in differences:
        table.add_column(_TITLES.get(name, name), justify="right")
    for name in own:
        table.add_column("KL, nats / token" if name == "kl" else name, justify="right")
    for pair in task.pairs:
        cells = [_difference(name, pair.differences.get(name)) for name in differences]
        table.add_row(pair.subject, pair.base, *cells, *(_own(pair, name) for name in own))
    return table


def _value(scores: Scores, metric: str) -> str:
    value = scores.values.get(metric)
    if value is None:
        return ""
    series = scores.series.get(metric)
    error = f" \u00b1 {_number(metric, series.standard_error)}" if series and len(series) > 1 else ""
    return _number(metric, value) + error


def _number(metric: str, value: float) -> str:
    if metric in _SHARES:
        return f"{value:.2%}"
    return (
        f"{value:.2f}"
        if metric == "perplexity"
        else f"{value:.1f}"
        if metric in ("prefill", "decode")
        else f"{value:.4f}"
    )


def _counts(task: TaskResult, scores: Scores) -> str:
    series = next(iter(scores.series.values()), None)
    if series is None:
        return ""
    return f"{len(series)}" + ("" if task.weight == task.unit else f", {math.fsum(series.weights):.0f}")


def _difference(metric: str, found: Difference | None) -> str:
    if found is None:
        return ""
    number = f"{found.value:+.2%}" if metric in _SHARES else f"{found.value:+.4f}"
    if math.isnan(found.low):
        return number
    low, high = ((f"{each:+.2%}" if metric in _SHARES else f"{each:+.4f}") for each in (found.low, found.high))
    return f"{number} ({low}, {high})"


def _own(pair: Pair, name: str) -> str:
    series: Series | None = pair.series.get(name)
    return "" if series is None else _number(name, series.mean)
