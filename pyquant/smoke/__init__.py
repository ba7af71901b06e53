# SPDX-License-Identifier: Apache-2.0
"""Smoke tests: every registered wrapper from prepare to a .circle file that runs, one case each.

It owns the generated cases and their results; `pyquant smoke` shows them.
"""

from __future__ import annotations

from pyquant.smoke.cases import Case, cases, family_cases
from pyquant.smoke.run import FAILED, NO_GRAPH, OK, Result, run

__all__ = ["FAILED", "NO_GRAPH", "OK", "Case", "Result", "cases", "family_cases", "run"]
