# SPDX-License-Identifier: Apache-2.0
"""How the time of each step grows with layers, width, sequence, samples: plots and exponents of docs/performance.md.

    python -m benchmarks.growth [--out docs/performance] [--axis layers ...] [--redraw]

Each size is measured in a process of its own; the numbers go to OUT/growth.json, a plot of each axis to OUT/AXIS.svg,
the table of exponents into docs/performance.md between its markers. --redraw makes plots and table of the numbers that
are there. An exponent is the slope of log(time) over log(size) between the largest size and the one a quarter of it:
where fixed costs matter least. The machine should have nothing else to do; it takes about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.conftest import cpu
from benchmarks.growth.measure import STEPS, Size, measure
from benchmarks.pages import ROOT, between
from pyquant import files

#: axis -> its sizes, and what the others are meanwhile
AXES: Mapping[str, tuple[tuple[int, ...], Size]] = {
    "layers": ((4, 8, 16, 32, 64), Size(hidden=128, sequence=64)),
    "sequence": ((64, 256, 1024, 2048, 4096), Size(layers=2, hidden=256)),
    "hidden": ((256, 512, 1024, 2048, 4096), Size(layers=2, sequence=64)),
    "samples": ((1, 4, 16, 32, 128), Size(layers=2, hidden=256, sequence=64)),
}
PAGE = ROOT / "docs/performance.md"
Points = dict[int, dict[str, float]]  # size -> step -> seconds


def exponent(points: Points, step: str) -> float:
    """The slope between the largest size and the largest one that is at most a quarter of it."""
    last = max(points)
    before = max(size for size in points if size * 4 <= last)
    return math.log(points[last][step] / points[before][step]) / math.log(last / before)


def table(growth: Mapping[str, Points]) -> str:
    """Exponents by step and axis, and the seconds at the largest size."""
    lines = ["| step | " + " | ".join(f"{axis} to {max(points)}" for axis, points in growth.items()) + " |"]
    lines.append("| --- |" + " --- |" * len(growth))
    for step in STEPS:
        cells = [f"{exponent(points, step):.2f} ({points[max(points)][step]:.2g} s)" for points in growth.values()]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(axis: str, points: Points, path: Path) -> None:
    """Seconds of each step over the sizes, both axes logarithmic; same numbers, same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "pyquant", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(figsize=(5.2, 3.4), layout="constrained")
    sizes = sorted(points)
    for step in STEPS:
        label = f"{step} ({exponent(points, step):.2f})"
        plot.plot(sizes, [points[size][step] for size in sizes], marker="o", markersize=3, linewidth=1.2, label=label)
    plot.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds", xticks=sizes)
    plot.set_xticklabels(list(map(str, sizes)))
    plot.minorticks_off()
    plot.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside right center", fontsize=8, title="step (exponent)", title_fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def in_process(size: Size) -> dict[str, float]:
    """measure(size) in a fresh process, so that no size meets the memory or caches that another one left."""
    sizes = json.dumps(dataclasses.asdict(size))
    command = [sys.executable, "-m", "benchmarks.growth", "--one", sizes]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run(axes: list[str], out: Path) -> dict[str, Any]:
    """Measure these axes; what the file of an earlier run says of the others stays."""
    path = out / "growth.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": cpu(), "axes": {}}
    if found["machine"] != cpu():
        raise SystemExit(f"{path} is of {found['machine']}, this is {cpu()}; remove it, or name another --out")
    for axis in axes:
        sizes, base = AXES[axis]
        points = found["axes"][axis] = {}
        for size in sizes:
            points[str(size)] = in_process(dataclasses.replace(base, **{axis: size}))
            print(axis, size, {step: round(took, 3) for step, took in points[str(size)].items()}, flush=True)
            files.whole_text(path, json.dumps(found, indent=1) + "\n")
    return found


def show(found: Mapping[str, Any], out: Path, page: Path) -> None:
    """The plots, and the page's table."""
    growth = {
        axis: {int(size): steps for size, steps in found["axes"][axis].items()}
        for axis in AXES
        if axis in found["axes"]
    }
    for axis, points in growth.items():
        draw(axis, points, out / f"{axis}.svg")
    between(page, "growth", table(growth))
    print(table(growth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=PAGE.with_suffix(""), help="folder of numbers and plots (%(default)s)"
    )
    parser.add_argument("--axis", nargs="+", choices=tuple(AXES), default=list(AXES), help="which (default: all)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Size(**json.loads(args.one)))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    found = json.loads((args.out / "growth.json").read_text()) if args.redraw else run(args.axis, args.out)
    show(found, args.out, PAGE)


if __name__ == "__main__":
    main()
