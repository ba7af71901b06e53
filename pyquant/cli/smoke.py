# SPDX-License-Identifier: Apache-2.0
"""Runs every registered wrapper through prepare, calibrate, convert, export and a run of the file, and reports each.

Cases are made from the registry and the families' tiny models. Exit code 1 when one fails or passes a threshold.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyquant.cli.main import FINE, FOUND
from pyquant.cli.thresholds import add_fail_above, passed
from pyquant.errors import UsageError
from pyquant.recipes import names as recipes

if TYPE_CHECKING:
    from pyquant.smoke import Result

FORMAT = "pyquant-smoke-1"
COLUMNS = "case", "status", "mean|d|", "max|d|", "PEIR", "SQNR dB", "shape", "finite", "no qp", "LSB op", "LSB out", "B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--case", action="append", default=[], metavar="NAME", help="only these, such as gemma4/* or nn/Linear (globs)")
    add("--recipe", choices=recipes(), default="w8a8", help="the formats (%(default)s)")
    add("--export", choices=("circle", "none"), default="circle", help="none: stop after convert (%(default)s)")
    add("--output-dir", type=Path, metavar="DIR", help="keep the .circle files there")
    add("--all", action="store_true", help="one line each instead of a paragraph each")
    add("--list", action="store_true", help="only list the cases")
    add("--json", action="store_true", help="the results as JSON instead of text")
    add_fail_above(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pyquant import smoke

    found = smoke.cases()
    if args.case:
        names = [case.name for case in found]
        for pattern in args.case:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"--case {pattern}: there is no such case; there are {', '.join(names)}")
        found = [case for case in found if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in args.case)]
    if args.list:
        print("\n".join(case.name for case in found))
        return FINE
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    width = max(len(case.name) for case in found)
    if args.all and not args.json:
        print(_line(COLUMNS, width))
    results = []
    for case in tqdm(found, desc="smoke", unit="case", disable=None if args.json else True):
        result = smoke.run(case, args.recipe, export=args.export == "circle", folder=args.output_dir)
        results.append(result)
        if not args.json:
            print(_line(_cells(result), width) + _reasons(result) if args.all else _paragraph(result), flush=True)
    beyond = passed(args.fail_above, {result.case: _metrics(result) for result in results})
    failed = [result for result in results if result.status == smoke.FAILED]
    without = sum(result.status == smoke.NO_GRAPH for result in results)
    if args.json:
        data = {"format": FORMAT, "recipe": args.recipe, "results": [each.to_dict() for each in results]}
        print(json.dumps(data | {"beyond": beyond}, indent=1, allow_nan=False))
    else:
        ok = len(results) - len(failed) - without
        counts = f"{ok} ok, {without} without a graph of their own, {len(failed)} failed"
        print(f"{len(results)} cases, {args.recipe}: {counts}")
    print("".join(f"{line}\n" for line in beyond), end="", file=sys.stderr)
    return FOUND if failed or beyond else FINE


def _metrics(result: Result) -> dict[str, float | None]:
    return {
        "PEIR": result.peir,
        "SQNR": result.sqnr,
        "MAX": result.max_abs,
        "MEAN": result.mean_abs,
        "LSB": result.op_lsb,
    }


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.case, result.status, _number(result.mean_abs), _number(result.max_abs), _number(result.peir),
        _number(result.sqnr, "{:.1f}"), _yes(result.shapes_match), _yes(result.finite), _number(result.missing),
        _number(result.op_lsb), _number(result.output_lsb), _number(result.bytes, "{:,}"),
    )  # fmt: skip


def _line(cells: tuple[str, ...], width: int) -> str:
    widths = (width, 8, 9, 9, 9, 7, 5, 6, 5, 6, 7, 9)
    return "  ".join(
        cell.ljust(size) if number < 2 else cell.rjust(size)
        for number, (cell, size) in enumerate(zip(cells, widths, strict=True))
    )


def _reasons(result: Result) -> str:
    return "".join(f"\n    {reason}" for reason in result.reasons)


def _paragraph(result: Result) -> str:
    no_data = f", {result.dry} sites without data" if result.dry else ""
    equal = "-" if result.output_equal is None else f"{result.output_equal:.2%}"
    lines = [
        f"{result.case} ({result.recipe}): {result.status}",
        f"  quantized against float: mean |diff| {_number(result.mean_abs)}, max |diff| {_number(result.max_abs)}, "
        f"PEIR {_number(result.peir)}, SQNR {_number(result.sqnr, '{:.1f}')} dB",
        f"  shape match {_yes(result.shapes_match)}, finite {_yes(result.finite)}{no_data}",
    ]
    if result.missing is not None:
        lines += [
            f"  file: {_number(result.operators)} operators, {_number(result.bytes, '{:,}')} B, "
            f"{_number(result.missing)} tensors without qparams" + (f", {result.artifact}" if result.artifact else ""),
            f"  Circle against eager: {_number(result.op_lsb)} LSB op by op, {_number(result.output_lsb)} LSB end to "
            f"end, {equal} of the output equal",
        ]
    return "\n".join([*lines, *(f"  {reason}" for reason in result.reasons)])


def _number(value: float | None, form: str = "{:.3g}") -> str:
    return "-" if value is None else form.format(value)


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"
