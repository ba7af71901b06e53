# SPDX-License-Identifier: Apache-2.0
"""Tables of pages that commands write: what stands between `<!-- NAME -->` and `<!-- end NAME -->` of a Markdown file.

    python -m benchmarks.pages      # the ratios of baseline.json, into README.md and docs/performance.md

It owns the markers and the tables of ratios. Tests compare the pages with what this makes of the committed numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyquant import files

ROOT = Path(__file__).parents[1]
BASELINE = Path(__file__).with_name("baseline.json")
#: what the README shows: benchmark -> its words
README = {
    "quantized_forward, 2 threads": "forward of a quantized layer, eager",
    "calibrate, 2 threads": "calibration of a layer",
    "mlp_to_a_file, 1 thread": "a quantized MLP to its file",
    "export_of_28_layers, 1 thread": "28 layers to a graph",
    "fake_quantize, 1 thread": "fake-quantize 16 MiB",
    "fake_quantize_per_group_of_32, 1 thread": "the same, groups of 32",
    "observe_minmax, 1 thread": "min and max of 16 MiB",
    "save_quantized, 2 threads": "save a quantized model",
    "load_quantized, 2 threads": "load it",
}


def between(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers `name` of a page. Raises SystemExit for a page without them."""
    files.whole_text(page, replaced(page.read_text(encoding="utf-8"), name, text, page))


def replaced(source: str, name: str, text: str, page: Path) -> str:
    """`source` with `text` between its markers."""
    first, last = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if source.count(first) != 1 or source.count(last) != 1 or source.index(first) > source.index(last):
        raise SystemExit(f"{page} needs the lines {first.strip()!r} and {last!r} once, in this order")
    before, rest = source.split(first)
    return f"{before}{first}{text}\n{last}{rest.split(last)[1]}"


def ratios(table: Mapping[str, Any], wanted: Mapping[str, str] | None = None) -> str:
    """A Markdown table: benchmark, and how many times pyquant's time each rival takes."""
    lines = ["| | how many times pyquant's time a rival takes |", "| --- | --- |"]
    for name in wanted or sorted(table):
        rivals = ", ".join(f"{rival} **{ratio:g}**" for rival, ratio in table[name]["ratios"].items())
        lines.append(f"| {(wanted or {}).get(name, name)} | {rivals} |")
    return "\n".join(lines)


def tables(baseline: Mapping[str, Any]) -> dict[Path, str]:
    """What the two pages show of the first machine of the baseline."""
    machine, table = next(iter(baseline.items()))
    title = f"Measured by `make bench` on {machine}.\n\n"
    return {
        ROOT / "README.md": title + ratios(table, README),
        ROOT / "docs/performance.md": title + ratios(table),
    }


def main() -> None:
    for page, text in tables(json.loads(BASELINE.read_text(encoding="utf-8"))).items():
        between(page, "ratios", text)
        print(f"{page.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
