# SPDX-License-Identifier: Apache-2.0
"""The quantization log of a tree: who decided what, and what was lost by it.

It owns adding to the log, and that all ranks of a group decided the same. The record and its file form are decision.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyquant.decision import Decision
from pyquant.distributed import Group
from pyquant.tree_statistics import checksum
from pyquant.wrap import QModule

__all__ = ["Decision", "agree", "record"]


def agree(q: QModule, group: Group | None, what: str) -> None:
    """Raise RankError unless all ranks have the same tree after `what`, bit for bit."""
    if group is not None and group.size > 1:
        group.same(f"the tree after {what}", checksum(q))


def record(q: QModule, decisions: Decision | Iterable[Decision]) -> None:
    """Add to the log of the tree that `q` belongs to: `q.state.log`, which save_quantized writes with the tree."""
    q.state.log += [decisions] if isinstance(decisions, Decision) else list(decisions)
