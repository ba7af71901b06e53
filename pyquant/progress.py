# SPDX-License-Identifier: Apache-2.0
"""How far a long step is: a bar on a terminal, lines now and then in a log, with the memory that the process had.

It owns their form, on stderr. What a step counts is the step's.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from tqdm import tqdm

__all__ = ["Lines", "bar", "peak"]

Item = TypeVar("Item")
EVERY = 5.0  # seconds between two lines of one step
_STATUS = Path("/proc/self/status")


def bar(
    items: Iterable[Item] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    show: bool | None = None,
    leave: bool | None = True,
) -> Any:
    """`items` with a bar: an object of tqdm, or Lines, which has what we use of it.

    show: None shows it on a terminal alone; True elsewhere too, as lines; False never. desc: the stage, unit: what is
    counted ("block"). leave: as of tqdm.
    """
    if show and not sys.stderr.isatty():
        return Lines(items, desc, unit, total)
    return _Bar(items, desc=desc, unit=unit, total=total, disable=None if show is None else not show, leave=leave)


def peak() -> str:
    """`peak 1.23 GiB`: the most resident memory of this process so far; "" where that is not known."""
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
    return f"peak {int(found[1]) / (1 << 20):.2f} GiB" if found else ""


class _Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's, with the memory behind the time."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the line is made of."""
        return {**super().format_dict, "postfix": peak()}


class Lines(Generic[Item]):
    """A step in a log: `gptq: block 3 of 37, 12 s, 140 s left, peak 1.23 GiB`.

    The first count and the last one are lines, and between them one every EVERY seconds. It is used as tqdm is.
    """

    def __init__(
        self,
        items: Iterable[Item] | None,
        desc: str,
        unit: str,
        total: int | None = None,
        *,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._items, self._desc, self._unit, self._clock = items, desc, unit, clock
        self._file = file
        self._began = self._said = 0.0
        size: Any = getattr(items, "__len__", None)
        self.total: int | None = total if total is not None or size is None else size()
        self.reset()

    def __iter__(self) -> Iterator[Item]:
        assert self._items is not None, "a step without items is counted by update"
        for item in self._items:
            yield item
            self.update()

    def __enter__(self) -> Lines[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end: every line is whole."""

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        now = self._clock()
        if self.n > count and now - self._said < EVERY and self.n != self.total:
            return
        self._said = now
        self._say(now - self._began)

    def set_description(self, desc: str) -> None:
        """The stage has another name from now on."""
        self._desc = desc

    def reset(self, total: int | None = None) -> None:
        """Count from 0 again."""
        self.n = 0
        self.total = self.total if total is None else total
        self._began = self._said = self._clock()

    def _say(self, spent: float) -> None:
        parts = [f"{self._desc}: {self._unit} {self.n}" + ("" if self.total is None else f" of {self.total}")]
        parts.append(f"{spent:.0f} s")
        if self.total is not None and 0 < self.n < self.total:
            parts.append(f"{spent / self.n * (self.total - self.n):.0f} s left")
        print(", ".join([*parts, *filter(None, [peak()])]), file=self._file or sys.stderr, flush=True)
