# SPDX-License-Identifier: Apache-2.0
"""Lists the recipes that come with pyquant and where their files run; with a name, explains one.

It owns the words on the terminal. Recipes are pyquant/recipes/, what a file of one's own may say docs/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import Any

from pyquant import recipes
from pyquant.cli.main import FINE
from pyquant.recipes.runtimes import RUNTIMES, VERDICTS, Verdict

_NAMES = {"pyquant": "pyquant's runner", "tico": "TICO's runtime", "luci": "ONE's verifier (luci)", "onert": "onert"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        choices=recipes.names(),
        metavar="RECIPE",
        help="explain this one: " + ", ".join(recipes.names()),
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON on the standard output")


def run(args: argparse.Namespace) -> int:
    chosen = recipes.names() if args.name is None else (args.name,)
    if args.json:
        print(json.dumps({name: _data(name) for name in chosen}, indent=1))
    elif args.name is None:
        print(_table())
    else:
        print(_explained(args.name))
    return FINE


def _data(name: str) -> dict[str, Any]:
    data = {key: value for key, value in recipes.read(name).items() if key not in ("format", "version", "name")}
    return {**data, "runs": {runtime: str(verdict) for runtime, verdict in VERDICTS[name].items()}}


def _mark(verdict: Verdict) -> str:
    if verdict.runs:
        return "runs"
    return {"refused": "-", "checked only": "checked"}.get(verdict.words.split(":")[0], "untested")


def _table() -> str:
    width = max(map(len, recipes.names()))
    below = shutil.get_terminal_size((80, 24)).columns
    lines = [f"{'recipe':<{width}}  " + "  ".join(f"{name:<8}" for name in RUNTIMES)]
    for name in recipes.names():
        marks = "  ".join(f"{_mark(VERDICTS[name][runtime]):<8}" for runtime in RUNTIMES)
        lines.append(f"{name:<{width}}  {marks}".rstrip())
        lines += textwrap.wrap(
            recipes.read(name)["description"], below, initial_indent="    ", subsequent_indent="    "
        )
    legend = (
        "runs: as the quantized model computes, for onert with `--target onert` (untested: it needs AVX-512, not at "
        "hand so far); checked: by ONE's rules, no program of ONE ran it here; -: refused. `pyquant recipes RECIPE` "
        "says why, and what the choices rest on."
    )
    return "\n".join([*lines, "", textwrap.fill(legend, below)])


def _explained(name: str) -> str:
    data = recipes.read(name)
    below = shutil.get_terminal_size((80, 24)).columns

    def wrapped(text: str, indent: str = "") -> str:
        return textwrap.fill(" ".join(text.split()), below, initial_indent=indent, subsequent_indent=indent)

    lines = [wrapped(f"{name}: {data['description']}"), "", "Runs in"]
    lines += [f"  {_NAMES[runtime]}: {verdict}" for runtime, verdict in VERDICTS[name].items()]
    if "evidence" in data:
        lines += ["", "Evidence", wrapped(data["evidence"], "  ")]
    lines += [
        "",
        "The file (copy it, change it, give it to --recipe)",
        textwrap.indent(recipes.text(name).rstrip(), "  "),
    ]
    return "\n".join(lines)
