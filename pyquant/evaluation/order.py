# SPDX-License-Identifier: Apache-2.0
"""Which subject is the reference, which pairs are compared, and how many units of a task each subject runs.

It owns these choices, and what is counted for a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyquant.evaluation.result import Settings
from pyquant.evaluation.subjects import Subject


@dataclass(frozen=True)
class Paired:
    """Sums of each unit of a pair."""

    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)


_RANKS = ("float", "quantized", "files")


def reference_of(subjects: Sequence[Subject]) -> int:
    """The index of the subject that others are compared with: the first float one, else the first quantized one."""
    return min(range(len(subjects)), key=lambda index: _RANKS.index(subjects[index].kind))


def ordered_pairs(subjects: Sequence[Subject], reference: int) -> list[tuple[int, int]]:
    """(subject, base) of all pairs: each beside the reference first, then files beside simulations, and later ones
    beside earlier ones."""
    rest = [index for index in range(len(subjects)) if index != reference]
    order = [reference, *sorted(rest, key=lambda index: _RANKS.index(subjects[index].kind))]
    return [(order[b], order[a]) for a in range(len(order)) for b in range(a + 1, len(order))]


def units_of(subject: Subject, units: int, settings: Settings) -> int:
    """How many of `units` a subject runs: files as many as `files_limit`, others all."""
    limit = settings.files_limit if subject.kind == "files" else None
    return units if limit is None else min(units, limit)


def limited(subjects: Sequence[Subject], units: int, unit: str, settings: Settings) -> tuple[str, ...]:
    """A note for each subject that runs fewer units than there are."""
    counts = {subject.name: units_of(subject, units, settings) for subject in subjects}
    return tuple(f"{name}: the first {count} of {units} {unit}s" for name, count in counts.items() if count < units)
