# SPDX-License-Identifier: Apache-2.0
"""How much memory this process has, step by step.

It owns what the operating system says. Elsewhere than on Linux there are no figures. Giving pages back is
pyquant/pages.py.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
_PERIOD = 0.02  # seconds between two looks


@dataclass(frozen=True)
class Step:
    """What one step took: seconds, and the most resident memory meanwhile in bytes (0 where that is not known)."""

    seconds: float
    peak: int

    def __add__(self, other: Step) -> Step:
        return Step(self.seconds + other.seconds, max(self.peak, other.peak))


class Timer:
    """Time and memory of each step, by its name, in the order of the steps. Steps may be inside others."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything in the block is a part of the step `name`."""
        began = time.perf_counter()
        with _Watch() as watch:
            yield
        spent = Step(time.perf_counter() - began, watch.peak)
        self.steps[name] = self.steps[name] + spent if name in self.steps else spent

    @property
    def peak(self) -> int:
        """The most resident memory of the process so far, in bytes."""
        return _number(_STATUS, "VmHWM")


class _Watch:
    """The most resident memory while the block runs: looked at again and again, and exact when the process never had
    as much before."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._before = _number(_STATUS, "VmHWM")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        highest = _number(_STATUS, "VmHWM")
        self.peak = highest if highest > self._before else max(self.peak, _number(_STATUS, "VmRSS"))

    def _look(self) -> None:
        while not self._end.is_set():
            self.peak = max(self.peak, _number(_STATUS, "VmRSS"))
            self._end.wait(_PERIOD)


def _number(file: Path, name: str) -> int:
    """A number of kB of /proc/self/status or /proc/meminfo, in bytes; 0 where there is none."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def note(elements: int, dtype: str) -> str | None:
    """What to say before weights of so many elements are loaded in float32: that they do not fit, and what does.

    None where they fit, are loaded in another type (then they are mapped from files of that type), or nothing is known.
    """
    free = _number(_MEMINFO, "MemAvailable")
    if dtype != "float32" or not free or elements * 4 < free:
        return None
    return (
        f"the weights take {elements * 4 / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB of memory are free; "
        f"--dtype bfloat16 uses those of a bfloat16 checkpoint in place, a few at a time in memory"
    )
