# SPDX-License-Identifier: Apache-2.0
"""Measures a model, a quantized model or the files of a bundle, beside others on the same samples.

It owns the options, what a folder is, and the exit code. Measuring is pyquant.evaluation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyquant import files
from pyquant.cli.checkpoints import DTYPES
from pyquant.cli.main import FINE, FOUND
from pyquant.cli.options import count
from pyquant.cli.thresholds import Threshold, add_limits, passed
from pyquant.errors import UsageError

if TYPE_CHECKING:
    from pyquant.evaluation import Evaluation

ABOVE = ("NATS", "PERPLEXITY", "LOST", "KL")
BELOW = ("AGREEMENT", "EXACT", "VQA", "ACC")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--model", metavar="DIR", help="a float checkpoint folder (or hub name)")
    subject.add_argument("--quantized", metavar="DIR", help="a quantized model: OUT/quantized of pyquant quantize")
    subject.add_argument("--bundle", metavar="DIR", help=".circle files: OUT of pyquant quantize")
    add("--against", nargs="+", action="extend", default=[], metavar="DIR", help=_AGAINST)
    add("--tasks", nargs="+", action="extend", required=True, metavar="TASK", help=_TASKS)
    add("--limit", type=count, metavar="N", help="only the first N windows, questions, documents of each task")
    add("--bundle-limit", type=count, metavar="N", help="bundles run only the first N of them (default: 8)", default=8)
    add("--window", type=lambda text: count(text, 2), default=256, metavar="N", help="tokens of a window (%(default)s)")
    add("--max-new-tokens", type=count, default=16, metavar="N", help="tokens of an answer (%(default)s)")
    add("--tokenizer", metavar="DIR", help="folder of tokenizer and processor (default: the first above that has one)")
    add("--gguf-file", metavar="NAME", help="the weights of a float folder are this .gguf file in it")
    add("--dtype", choices=DTYPES, default="float32", help="the type that float models run in (%(default)s)")
    add(
        "--runtime",
        choices=("native", "tico", "onert"),
        default="native",
        help="what runs the files of bundles (%(default)s)",
    )
    add("--calibration", type=Path, action="append", default=[], metavar="FILE", help=_CALIBRATION)
    add("--lm-eval-tasks", type=Path, metavar="DIR", help="task files (.yaml) of your own for lm-eval")
    add("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    add("--resamples", type=count, default=10_000, metavar="N", help="of the bootstrap (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all numbers as JSON; - is standard output")
    add_limits(parser, above=ABOVE, below=BELOW)


_AGAINST = (
    "what it is compared with: folders of float, quantized models or bundles; or float, quantized, bundle: those that "
    "the subject was made from or with"
)
_TASKS = (
    "perplexity:FILE_OR_FOLDER of text; questions:FILE.jsonl, lines of image, question, answer; lm-eval:NAME[,NAME]; "
    "throughput, or throughput:IN,OUT in tokens"
)
_CALIBRATION = (
    "data that a subject was calibrated on, as --data of pyquant quantize (what pyquant quantize recorded is found); "
    "samples that are in it are counted; may be repeated"
)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from pyquant import evaluation
    from pyquant.cli import evaluate_subjects, evaluate_tasks

    chosen = evaluate_subjects.choose(args)
    plans = evaluate_tasks.plan(args.tasks)
    reader = evaluate_tasks.reader_of(args, chosen, plans)
    with evaluate_subjects.loaded(args, chosen) as subjects:
        tasks = [evaluate_tasks.task(args, each, reader, subjects) for each in plans]
        known = evaluate_tasks.calibration(args, chosen, reader, subjects)
        found = evaluation.evaluate(
            subjects,
            tasks,
            calibration=known,
            seed=args.seed,
            resamples=args.resamples,
            files_limit=args.bundle_limit,
        )
    if str(args.json) == "-":
        print(found.to_json(), end="")
    else:
        if args.json is not None:
            files.whole_text(args.json, found.to_json())
        evaluation.show(found, Console(width=None if sys.stdout.isatty() else 130, highlight=False))
        if known is None and any(plan.checked for plan in plans):
            print("calibration: not recorded beside these models; --calibration FILE names its data")
    return _exit_code(found, next(iter(subjects)), args.limits)


def _exit_code(found: Evaluation, subject: str, limits: list[Threshold]) -> int:
    """FOUND, and a line for each, where a value of the subject is beyond a limit. Raises UsageError for a limit of
    what was not measured."""
    rows: dict[str, dict[str, float | None]] = {}
    for task in found:
        scores = next((scores for scores in task.scores if scores.subject == subject), None)
        if scores is None:
            continue
        row: dict[str, float | None] = {name.upper(): value for name, value in scores.values.items()}
        for pair in task.pairs:
            ours = pair.subject == subject and pair.base == found.reference
            if ours:
                row |= {name.upper(): series.mean for name, series in pair.series.items()}
                if "nats" in pair.differences:
                    row["LOST"] = pair.differences["nats"].value
        rows[f"{task.name}, {subject}"] = row
    for limit in limits:
        if not any(limit.metric in row for row in rows.values()):
            raise UsageError(f"{limit.metric} was not measured for {subject}: it is of {_OF[limit.metric]}")
    beyond = passed(limits, rows)
    for line in beyond:
        print(f"beyond: {line}", file=sys.stderr)
    return FOUND if beyond else FINE


_PAIRED = "perplexity beside a float model or another one (--against)"
_OF = {
    "NATS": "perplexity tasks",
    "PERPLEXITY": "perplexity tasks",
    "LOST": _PAIRED,
    "KL": _PAIRED,
    "AGREEMENT": "perplexity or questions beside another one (--against)",
    "EXACT": "questions tasks",
    "VQA": "questions tasks",
    "ACC": "lm-eval tasks that have it",
}
