# SPDX-License-Identifier: Apache-2.0
"""Places: module paths of a checkpoint found by those of a tree, or the other way round.

It owns what counts as the same path where a part of a model has no prefix.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Places"]


class Places:
    """Module paths of one side, found by those of the other: the same, or one is the end of the other (a part of a
    model has no prefix)."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = sorted(set(paths))
        self._known = set(self._paths)

    def find(self, path: str) -> str | None:
        """The path that fits; None where none or several do."""
        fits = self.fits(path)
        return fits[0] if len(fits) == 1 else None

    def fits(self, path: str) -> list[str]:
        """The same path, else all of which one is the end of the other."""
        if path in self._known:
            return [path]
        return [other for other in self._paths if f".{other}".endswith(f".{path}") or f".{path}".endswith(f".{other}")]
