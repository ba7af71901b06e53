# SPDX-License-Identifier: Apache-2.0
"""Thresholds on the command line: `PEIR=0.05` is passed by a larger value, `SQNR=20` by a smaller one.

Verbs that compare tensors have --fail-above for all of them; `evaluate` has --fail-above and --fail-below, each for the
metrics whose worse values lie there.

It owns their syntax and the comparison; the numbers come from each verb.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

# metric -> whether a larger value is the worse one
TENSORS = {"PEIR": True, "MAX": True, "MEAN": True, "STD": True, "LSB": True, "SQNR": False, "COSINE": False}
MODELS = {
    "NATS": True,
    "PERPLEXITY": True,
    "LOST": True,
    "KL": True,
    "AGREEMENT": False,
    "EXACT": False,
    "VQA": False,
    "ACC": False,
}
METRICS = TENSORS | MODELS


@dataclass(frozen=True)
class Threshold:
    """A limit for a metric."""

    metric: str
    limit: float

    def passed(self, value: float | None) -> bool:
        """Whether a value is beyond the limit; NaN does, None (not measured) does not."""
        if value is None:
            return False
        return not (value <= self.limit if METRICS[self.metric] else value >= self.limit)

    def __str__(self) -> str:
        return f"{self.metric} {'>' if METRICS[self.metric] else '<'} {self.limit:g}"


def threshold(text: str, metrics: Sequence[str] = tuple(TENSORS)) -> Threshold:
    """The `type=` of an argparse option: `METRIC=NUMBER`, upper or lower case, of one of `metrics`."""
    name, mark, number = text.partition("=")
    metric = name.strip().upper()
    if not mark or metric not in METRICS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no threshold; expected METRIC=NUMBER such as {metrics[0]}=0.05, with one of "
            f"{', '.join(metrics)}"
        )
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        raise argparse.ArgumentTypeError(f"{text!r}: {number!r} is no number; expected a number such as {metric}=0.05")
    return Threshold(metric, limit)


def add_fail_above(parser: argparse.ArgumentParser, metrics: Sequence[str] = tuple(TENSORS)) -> None:
    """`--fail-above` for a verb that measures `metrics`; may be given several times."""

    def known(text: str) -> Threshold:
        found = threshold(text, metrics)
        if found.metric not in metrics:
            raise argparse.ArgumentTypeError(
                f"{text!r}: {found.metric} is not measured here; expected one of {', '.join(metrics)}"
            )
        return found

    parser.add_argument(
        "--fail-above",
        metavar="METRIC=LIMIT",
        type=known,
        action="append",
        default=[],
        help=f"exit code 1 when a value is beyond the limit, such as PEIR=0.05 (SQNR and COSINE: below it); one of "
        f"{', '.join(metrics)}; may be repeated",
    )


def add_limits(parser: argparse.ArgumentParser, above: Sequence[str], below: Sequence[str]) -> None:
    """`--fail-above` for metrics whose larger values are worse, `--fail-below` for the others, both into `limits`; each
    may be given several times, and refuses the other's metrics."""
    for option, metrics, example in (("--fail-above", above, "=0.1"), ("--fail-below", below, "=0.9")):
        parser.add_argument(
            option,
            metavar="METRIC=LIMIT",
            type=partial(_of, metrics, option),
            action="append",
            dest="limits",
            default=[],
            help=f"exit code 1 when a value of the subject is {option[7:]} the limit, such as {metrics[0]}{example}; "
            f"one of {', '.join(metrics)}; may be repeated",
        )


def _of(metrics: Sequence[str], option: str, text: str) -> Threshold:
    found = threshold(text, metrics)
    if found.metric not in metrics:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {option} is for {', '.join(metrics)} here; {found.metric} is not one of them"
        )
    return found


def passed(thresholds: list[Threshold], rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """One line for each threshold and row (title -> metric -> value) that is beyond it."""
    return [
        f"{title}: {limit.metric} {rows[title][limit.metric]:.4g}, the threshold is {limit.limit:g}"
        for limit in thresholds
        for title in rows
        if limit.metric in rows[title] and limit.passed(rows[title][limit.metric])
    ]
