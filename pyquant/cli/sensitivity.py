# SPDX-License-Identifier: Apache-2.0
"""Ranks what quantizing each tensor, site or module alone does to the output, and writes the mixed-precision policy
that follows.

The model is quantized by the command itself, by a recipe, on the data given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyquant.cli import subject
from pyquant.cli.main import FINE
from pyquant.cli.options import count
from pyquant.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    subject.add_arguments(parser)
    add(
        "--groups", choices=("tensor", "site", "module"), default="tensor", help="what is quantized alone (%(default)s)"
    )
    add("--by", choices=("sqnr", "peir"), default="sqnr", help="what the order is by (%(default)s)")
    add("--top", type=count, default=20, metavar="N", help="lines of the table (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all of it as JSON")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--worst", type=int, metavar="K", help="with --mixed: how many get 16 bits")
    how.add_argument("--budget", type=float, metavar="BITS", help="with --mixed: the mean bit width to keep")
    add("--widths", type=int, nargs="+", default=[8, 16], metavar="BITS", help="with --budget: steps (8 16)")
    add("--mixed", type=Path, metavar="FILE", help="write the mixed-precision policy, or recipe (.yaml or .json)")


def run(args: argparse.Namespace) -> int:
    from pyquant.recipe import Recipe
    from pyquant.sensitivity import sensitivity

    if (args.mixed is None) != (args.worst is None and args.budget is None):
        raise UsageError("--mixed FILE goes with --worst K or --budget BITS")
    given = subject.quantized(args)
    found = sensitivity(given.q, given.batches, groups=args.groups, reference=given.reference)
    print(found.table(args.top, args.by))
    if args.json is not None:
        found.save(args.json)
    if args.mixed is not None:
        widths = (16,) if args.worst is not None else tuple(args.widths)
        chosen = found.choose(args.worst, budget=args.budget, widths=widths, by=args.by)
        policy = found.policy_of(chosen)
        if given.recipe.steps:  # they are a part of what was measured
            Recipe(policy.name, policy, given.recipe.steps).save(args.mixed)
        else:
            policy.save(args.mixed)
        print(f"wrote {args.mixed}: {len(chosen)} groups wider, mean {found.bits(chosen)}")
    return FINE
