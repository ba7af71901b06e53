# SPDX-License-Identifier: Apache-2.0
"""Holds the ratios of a benchmark run against committed ones: exit code 1 when one fell by more than a quarter.

    python -m benchmarks.compare RESULT.json [RESULT.json ...] [--baseline FILE] [--fall 0.25] [--update]

A RESULT is what `make bench` and `make bench-short` write (pytest-benchmark's JSON, with the ratios of rivals.py). Of
several, the best of each ratio counts: noise makes one run worse, a slower pyquant all of them. A ratio is how many
times pyquant's time a rival takes in the same run. It fell when the third quarter of its turns lies more than that
below the first quarter of the baseline's: noise of either run is no fall. `clone` is shown and not held: its time has
two values, with pages that the allocator has already and with fresh ones.

Ratios depend on the CPU, so the baseline has a table for each: for another one the run is shown, and nothing is held.
A benchmark that the baseline has and the run lacks is an error (its guard would go in silence), one that only the run
has too: --update writes both, and leaves the other machines as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyquant import files

BASELINE = Path(__file__).with_name("baseline.json")
NOT_HELD = ("clone",)
Table = dict[str, dict[str, float]]  # benchmark -> rival -> ratio


@dataclass(frozen=True)
class Run:
    """The ratios of one machine; `low` and `high` are the first and the third quarter of the turns."""

    cpu: str
    short: bool
    ratios: Table
    low: Table
    high: Table
    in_short: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Raises SystemExit with one line for a file that is no result."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            about, found = data["machine_info"]["pyquant"], data["benchmarks"]
            tables: list[Table] = [
                {
                    each["group"]: {name: rival[key] for name, rival in each["extra_info"]["rivals"].items()}
                    for each in found
                }
                for key in ("ratio", "low", "high")
            ]
            in_short = frozenset(each["group"] for each in found if each["extra_info"]["short"])
            return cls(about["cpu"], about["short"], *tables, in_short)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{path}: no result of these benchmarks ({type(error).__name__}: {error}); write one by "
                "`make bench` or `python -m pytest benchmarks/kernels --benchmark-json=FILE`"
            ) from error

    def best(self, other: Run) -> Run:
        """The better of each ratio of two runs on one machine."""
        if (self.cpu, self.short) != (other.cpu, other.short):
            raise SystemExit("the results are of different machines or forms; give those of one")
        tables = [
            {
                group: {name: max(a.get(group, {}).get(name, 0.0), b.get(group, {}).get(name, 0.0)) for name in rivals}
                for group, rivals in {**a, **b}.items()
            }
            for a, b in ((self.ratios, other.ratios), (self.low, other.low), (self.high, other.high))
        ]
        return Run(self.cpu, self.short, *tables, self.in_short | other.in_short)


def faults(run: Run, expected: dict[str, Any], fall: float) -> list[str]:
    """What fell, is missing or is not known yet, a line each. `expected`: the baseline's table of this machine."""
    lines: list[str] = []
    held = {name: entry for name, entry in expected.items() if entry["short"] or not run.short}
    for group, entry in held.items():
        if group not in run.ratios:
            lines.append(f"{group}: the run lacks it; put it back, or take it out of the baseline by --update")
            continue
        for rival, before in entry["ratios"].items():
            if rival in NOT_HELD:
                continue
            if rival not in run.ratios[group]:
                lines.append(f"{group}: the run lacks the rival {rival!r}; put it back, or use --update")
            elif run.high[group][rival] < (1 - fall) * entry["low"][rival]:
                now = run.ratios[group][rival]
                lines.append(f"{group}: {before:.2f}x of {rival} before, now {now:.2f}x ({now / before - 1:+.0%})")
    lines += [f"{group}: the baseline lacks it; --update adds it" for group in run.ratios if group not in expected]
    return lines


def _short(ratios: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{ratio:.3g}") for name, ratio in ratios.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="committed ratios (%(default)s)")
    parser.add_argument("--fall", type=float, default=0.25, help="share of a ratio that may be lost (%(default)s)")
    parser.add_argument("--update", action="store_true", help="make this run the baseline of its machine")
    args = parser.parse_args()
    run, *others = map(Run.read, args.results)
    for other in others:
        run = run.best(other)
    baseline = json.loads(args.baseline.read_text(encoding="utf-8")) if args.baseline.exists() else {}
    if args.update:
        if run.short:
            raise SystemExit("--update needs a whole run, this one is of the short form; run `make bench`")
        table = {
            group: {
                "short": group in run.in_short,
                "ratios": _short(run.ratios[group]),
                "low": _short(run.low[group]),
            }
            for group in sorted(run.ratios)
        }
        files.whole_text(args.baseline, json.dumps({**baseline, run.cpu: table}, indent=1, sort_keys=True) + "\n")
        print(f"{args.baseline}: {len(table)} benchmarks of {run.cpu}")
        return 0
    if run.cpu not in baseline:
        known = "; ".join(baseline) or "none"
        print(f"no baseline for {run.cpu} (known: {known}): nothing is held; `make bench`, then --update adds one")
        return 0
    found = faults(run, baseline[run.cpu], args.fall)
    print("\n".join(found) if found else f"{len(run.ratios)} benchmarks hold their ratios ({run.cpu})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
