# SPDX-License-Identifier: Apache-2.0
"""What `trace` and `compare` share: the thresholds that a comparison passes, as lines, and the exit code.

It owns which metric is which field. Comparing values is pyquant.trace.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pyquant.cli.main import FINE, FOUND
from pyquant.cli.thresholds import Threshold, passed
from pyquant.errors import UsageError

if TYPE_CHECKING:
    from pyquant.trace import Comparison

METRICS = ("PEIR", "MAX", "MEAN", "STD", "SQNR", "COSINE")
SHOWN = 20  # lines about thresholds


def exit_code(comparison: Comparison, thresholds: list[Threshold]) -> int:
    """Prints on stderr which entries are beyond a threshold, and which could not be compared; FOUND if there are any.

    Raises UsageError when there is a threshold and nothing was measured.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for entry in comparison:
        d = entry.difference
        if d is not None and d.elements:
            title = f"{entry.module or '(model)'}{f' #{entry.repeat + 1}' if entry.repeat else ''} {entry.path}"
            mean = None if d.mean is None else abs(d.mean)
            rows[title] = dict(zip(METRICS, (d.peir, d.peak, mean, d.std, d.sqnr, d.cosine), strict=True))
    if thresholds and not rows:
        raise UsageError(
            "--fail-above has nothing to compare: no value was measured in both; traces keep the tensors when they are "
            "saved as folders (pyquant trace --save DIR)"
        )
    lines = passed(thresholds, rows) if thresholds else []
    lines += [f"{e.module or '(model)'} {e.path}: {e.problem}" for e in comparison.errors] if thresholds else []
    for line in lines[:SHOWN]:
        print(f"beyond: {line}", file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"beyond: and {len(lines) - SHOWN} more", file=sys.stderr)
    return FOUND if lines else FINE
