# SPDX-License-Identifier: Apache-2.0
"""Rope deltas: how far the next rotary position is from the number of tokens, of the last prompt and of each cache.

It owns remembering them without holding a cache alive. What positions are is positions.py.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor


class Deltas:
    """rope_deltas (B, 1) by the cache that their prompt is in; None for a prompt whose positions count its tokens.

    HF keeps one value per model, which is that of another prompt as soon as two take turns. A copy or a pickle starts
    empty, for it has other caches.
    """

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[Any, Tensor | None] = weakref.WeakKeyDictionary()

    def note(self, cache: Any, deltas: Tensor | None) -> None:
        """Record those of the prompt in `cache`; they are dropped with the cache."""
        if cache is not None and type(cache).__weakrefoffset__:
            self._of[cache] = deltas

    def of(self, cache: Any, otherwise: Tensor | None) -> Tensor | None:
        """Those of `cache`; `otherwise` when it was filled elsewhere."""
        if not type(cache).__weakrefoffset__:
            return otherwise
        return self._of.get(cache, otherwise)

    def __reduce__(self) -> tuple[type[Deltas], tuple[()]]:
        return Deltas, ()
