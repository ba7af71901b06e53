# SPDX-License-Identifier: Apache-2.0
"""Writes one HTML page about a quantized model, which needs no network, and prints the same on the terminal.

The model is quantized by the command itself, by a recipe, on the data given; with --circle the file's tensors are
listed too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyquant.cli import subject
from pyquant.cli.main import FINE, FOUND
from pyquant.cli.thresholds import add_fail_above, passed
from pyquant.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    subject.add_arguments(parser)
    add("--circle", type=Path, metavar="x.circle", help="the exported file, whose tensors the page lists")
    add("--accuracy", action="append", default=[], metavar="NAME=SHARE", help="shown with the rest; may be repeated")
    add("--title", help="the page's heading (default: model and recipe)")
    add("--out", type=Path, default=Path("report.html"), metavar="FILE", help="where to (%(default)s)")
    add("--quiet", action="store_true", help="nothing on the terminal but the name of the file")
    add_fail_above(parser)


def run(args: argparse.Namespace) -> int:
    from pyquant import circle
    from pyquant.reporter import report, summary

    accuracies = dict(map(_accuracy, args.accuracy))
    if not args.out.absolute().parent.is_dir():
        raise UsageError(f"--out: the folder {str(args.out.absolute().parent)!r} does not exist; create it first")
    if args.circle is not None:
        circle.read(args.circle)  # before the model runs
    given = subject.quantized(args)
    data = report(
        given.q, given.batches, args.out, program=args.circle, accuracies=accuracies, title=args.title,
        reference=given.reference,
    )  # fmt: skip
    if not args.quiet:
        print(summary(data), end="")
    print(f"wrote {args.out}")
    out = data.output
    metrics = {"PEIR": out.peir, "SQNR": out.sqnr, "COSINE": out.cosine, "MAX": out.peak, "STD": out.std}
    beyond = passed(args.fail_above, {"output": metrics})
    print("".join(f"{line}\n" for line in beyond), end="")
    return FOUND if beyond else FINE


def _accuracy(text: str) -> tuple[str, float]:
    name, mark, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not mark or not 0 <= value <= 1:
        raise UsageError(f"--accuracy {text}: expected NAME=SHARE with a share in [0, 1], such as float=0.986")
    return name, value
