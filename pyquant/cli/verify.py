# SPDX-License-Identifier: Apache-2.0
"""Lists every fault of a .circle file, by the rules of a target.

It prints; the rules are native (csrc/circle/check) and, where TICO is installed, TICO's own verifier too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from pyquant.cli.main import FINE, FOUND
from pyquant.recipes import runtimes

TARGETS = ("circle", "luci", "onert")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="x.circle")
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default="circle",
        help="circle: the format; luci: ONE's rules too; onert: also what onert cannot compute (%(default)s)",
    )
    parser.add_argument("--no-tico", action="store_true", help="leave out TICO's verifier, which is run if installed")


def run(args: argparse.Namespace) -> int:
    from pyquant import circle

    found = circle.check(args.file, args.target)
    print(f"{args.file}: {_count(found)} for target {args.target}")
    print("".join(f"  {line}\n" for line in circle.listed(found)), end="")
    if found and (advice := runtimes.advice(args.target)):
        print(advice.removeprefix("; "))
    if args.no_tico:
        return FOUND if found else FINE
    if find_spec("tico") is None:
        print("TICO's verifier: not installed (pip install 'pyquant-circle[tico]')")
        return FOUND if found else FINE
    from pyquant.verify.runtimes.tico import structure_faults

    theirs = structure_faults(args.file)
    print(f"TICO's verifier: {_count(theirs)}")
    print("".join(f"  {line}\n" for line in theirs), end="")
    return FOUND if found or theirs else FINE


def _count(found: Sequence[object]) -> str:
    return f"{len(found)} fault{'' if len(found) == 1 else 's'}"
