# SPDX-License-Identifier: Apache-2.0
"""Skips the tests that need onert's block formats, only where the CPU lacks the instructions of its build."""

from __future__ import annotations

from typing import Any

import pytest

from pyquant.verify.runtimes.onert_cpu import why_no_blocks

_WHY = why_no_blocks()
needs_blocks = pytest.mark.skipif(_WHY is not None, reason=_WHY or "")


def presets(*names: str) -> list[Any]:
    """Parameters: the presets that onert runs, those of block formats (q8_onert, w4_onert) marked."""
    return [pytest.param(name, marks=needs_blocks) if name in ("q8_onert", "w4_onert") else name for name in names]
