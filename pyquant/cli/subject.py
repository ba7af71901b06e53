# SPDX-License-Identifier: Apache-2.0
"""The quantized model that `report` and `sensitivity` measure: which model, which data, which recipe.

It owns these options. Loading and generated inputs are trace_run.py, reading data is pyquant.calibration.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.cli.checkpoints import DTYPES
from pyquant.cli.options import count, recipe_name, recipe_of
from pyquant.errors import UsageError
from pyquant.recipes import names as recipes

if TYPE_CHECKING:
    from torch import nn

    from pyquant.recipe import Recipe
    from pyquant.wrap import QModule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `quantized` reads."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="checkpoint folder or hub name; or tiny:gemma4, tiny:llama ...")
    add("--recipe", type=recipe_name, default="w8a8", metavar="NAME|FILE", help=_RECIPE)
    add("--policy", type=Path, metavar="FILE", help="rules that come after those of --recipe")
    add("--data", type=Path, metavar="FILE", help="what to calibrate and compare on, as for pyquant quantize")
    add("--image", nargs="+", action="extend", default=[], metavar="FILE", help="image files, instead of --data")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--prompt", metavar="TEXT", help="a prompt, instead of --data")
    words.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids instead of a prompt")
    add("--compare-on", type=count, default=4, metavar="N", help="how many batches to compare on (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="the type that the float model runs in (%(default)s)")


_RECIPE = f"formats and steps: {', '.join(recipes())}, or a file (%(default)s)"


@dataclass(frozen=True)
class Subject:
    """The converted tree, the batches to compare on, and by which recipe.

    reference: the tree with the weights before they were decided, where a step of the recipe decides some.
    """

    q: QModule
    batches: list[Any]
    recipe: Recipe
    reference: QModule | None


def quantized(args: argparse.Namespace) -> Subject:
    """The model by the recipe, on all of the data. Notes on stderr which sites stay float."""
    from pyquant.cli import trace_run

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    fp = trace_run.load(args.model, args.dtype)
    batches = _batches(args, fp) if args.data is not None else [trace_run.inputs(args, fp, note)]
    recipe = recipe_of(args.recipe, args.policy, note)
    q = trace_run.quantize(fp, recipe, batches, note)
    reference = trace_run.undecided(fp, recipe, batches) if any(s.stage == "decide" for s in recipe.steps) else None
    return Subject(q, batches[: args.compare_on], recipe, reference)


def _batches(args: argparse.Namespace, fp: nn.Module) -> list[Any]:
    from functools import partial

    from pyquant import calibration
    from pyquant.calibration.data import forward_arguments, only
    from pyquant.cli import trace_run
    from pyquant.models import family_of

    if args.image or args.prompt is not None or args.ids is not None:
        raise UsageError("give either --data, or --image and --prompt or --ids")
    lines = args.data.suffix == ".jsonl"
    if lines and args.model.startswith(trace_run.TINY):
        raise UsageError(f"--data {args.data} is lines for a processor, which {args.model} does not have; give batches")
    data = calibration.read(args.data, calibration.load_reader(args.model) if lines else None)
    fitting = partial(only, forward_arguments(type(fp)), type(fp).__name__, drop=lines)
    return list(data.map(family_of(type(fp)).requests.inputs).map(fitting))
