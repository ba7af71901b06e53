# SPDX-License-Identifier: Apache-2.0
"""one_thread: operators that use no threads but the caller's, for a caller whose other threads have the cores.

It owns saying so to the native operators; how they split their work otherwise is torch's own number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyquant.ops._native import native

_one_thread: Callable[[bool], bool] = native("_one_thread")


@contextmanager
def one_thread() -> Iterator[None]:
    """Operators of pyquant that the calling thread runs inside the block do all of it themselves; equal results.

    After each call torch's helper threads wait some milliseconds for the next one, and take a core meanwhile: where
    calls are short and others compute beside them (a checksum), that costs more than a helper gives. Of no other thread
    and of no other operator is anything changed.
    """
    before = _one_thread(True)
    try:
        yield
    finally:
        _one_thread(before)
