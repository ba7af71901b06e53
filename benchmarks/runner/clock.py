# SPDX-License-Identifier: Apache-2.0
"""Races: rivals take turns in one process, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timed:
    """Seconds of each turn by rival."""

    seconds: Mapping[str, list[float]]

    def show(self, title: str, against: str, tokens: int | None = None) -> None:
        """Median, spread (first to third quarter), and how many times faster than `against`; also tokens/s where a turn
        gives so many tokens."""
        print(f"\n{title} ({machine()})")
        base = median(self.seconds[against])
        for name, turns in self.seconds.items():
            low, _, high = quantiles(turns, n=4)
            middle = median(turns)
            print(
                f"  {name:24} {middle * 1e3:9.3f} ms  ({low * 1e3:.3f} to {high * 1e3:.3f}, {len(turns)} turns)  "
                f"{base / middle:5.2f}x" + (f"  {tokens / middle:8.1f} tokens/s" if tokens else "")
            )


def race(rivals: Mapping[str, Callable[[], object]], seconds: float) -> Timed:
    """Turns of each rival for so long, after one turn that does not count."""
    for run in rivals.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in rivals}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, found.values())) < 3:
        for name, run in rivals.items():
            began = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - began)
    return Timed(found)


def machine() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
