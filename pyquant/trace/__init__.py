# SPDX-License-Identifier: Apache-2.0
"""Owns the module-by-module tracer: what each call of a model took and returned, and how far two runs are apart.
Leaves quantization and its sites to the rooms that make them: nothing here knows more than torch modules.
"""

from __future__ import annotations

from pyquant.trace.capture import capture
from pyquant.trace.compare import Comparison, Entry, compare
from pyquant.trace.metrics import Difference, difference
from pyquant.trace.record import Call, Trace, TraceError
from pyquant.trace.render import render_comparison, render_trace
from pyquant.trace.values import Leaf, Statistics, TensorValue, Tree, describe, statistics

__all__ = [
    "Call",
    "Comparison",
    "Difference",
    "Entry",
    "Leaf",
    "Statistics",
    "TensorValue",
    "Trace",
    "TraceError",
    "Tree",
    "capture",
    "compare",
    "describe",
    "difference",
    "render_comparison",
    "render_trace",
    "statistics",
]
