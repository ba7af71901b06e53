# SPDX-License-Identifier: Apache-2.0
"""Giving back the pages of tensors that are mapped from files.

It owns what the operating system is told. Elsewhere than on Linux nothing is given back.
"""

from __future__ import annotations

import bisect
import ctypes
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

__all__ = ["files_of", "is_mapped", "release"]

_SMAPS, _MAPS = Path("/proc/self/smaps"), Path("/proc/self/maps")
_DELETED = " (deleted)"
_DONTNEED = 4  # MADV_DONTNEED of <sys/mman.h>
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)", re.ASCII)


def release(tensors: Iterable[Tensor]) -> int:
    """Give the pages of these tensors back that can be read again from their files; returns their bytes.

    Weights of a checkpoint are mapped from its files: what was read stays in memory until another process needs it, and
    counts. A mapping with changed pages, in memory or swapped out, is left alone, so that no value is lost. What the
    allocator keeps of memory that was freed goes back too.
    """
    if sys.platform != "linux":
        return 0
    starts = {t.untyped_storage().data_ptr() for t in tensors if t.device.type == "cpu"}
    _trim()
    given = 0
    for start, end in _unchanged_files():
        if any(start <= address < end for address in starts):
            given += _forget(start, end - start)
    return given


def is_mapped(value: Tensor) -> bool:
    """Whether the values of a tensor lie in a mapped file; False where that is not known."""
    if value.device.type != "cpu":
        return False
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    address = value.data_ptr()
    for line in lines:
        if (found := _MAPPING.match(line)) and int(found[1], 16) <= address < int(found[2], 16):
            return int(found[4]) != 0
    return False


def files_of(tensors: Iterable[Tensor]) -> dict[Path, int]:
    """The files that these tensors are mapped from, and the inode of each; files without a name are left out.

    Empty where that is not known (elsewhere than on Linux).
    """
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    mappings = [found for line in lines if (found := _MAPPING.match(line)) and int(found[4])]
    starts = [int(found[1], 16) for found in mappings]
    named: dict[Path, int] = {}
    for address in {t.data_ptr() for t in tensors if t.device.type == "cpu"}:
        place = bisect.bisect_right(starts, address) - 1
        if place >= 0 and address < int(mappings[place][2], 16) and not mappings[place][5].endswith(_DELETED):
            named[Path(mappings[place][5].replace("\\012", "\n"))] = int(mappings[place][4])
    return named


def _unchanged_files() -> list[tuple[int, int]]:
    """(start, end) of each mapping of a file of which no page was changed, be it in memory or swapped out."""
    try:
        lines = _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[tuple[int, int]] = []
    current: tuple[int, int] | None = None
    for line in lines:
        if mapping := _MAPPING.match(line):
            current = (int(mapping[1], 16), int(mapping[2], 16)) if int(mapping[4]) else None
        elif current is not None and line.startswith("Anonymous:"):
            if int(line.split()[1]) == 0:
                found.append(current)
        elif line.startswith("Swap:") and int(line.split()[1]) and found[-1:] == [current]:
            found.pop()
    return found


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
        trim(0)


def _forget(start: int, size: int) -> int:
    madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if madvise is None:
        return 0
    madvise.argtypes, madvise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return size if madvise(start, size, _DONTNEED) == 0 else 0
