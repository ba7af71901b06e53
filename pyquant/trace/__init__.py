# SPDX-License-Identifier: Apache-2.0
"""The module-by-module tracer: inputs and outputs of each call of a model, the difference of two runs, and the error
of each site of a quantized tree.

It owns recording and comparing. Sites and grids are made in other rooms; `sensitivity` is pyquant.sensitivity's
function, imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from pyquant.trace.capture import capture
from pyquant.trace.counterparts import counterparts
from pyquant.trace.errors import TraceError
from pyquant.trace.losses import Loss, losses
from pyquant.trace.metrics import Difference, difference
from pyquant.trace.pairing import Comparison, Entry, compare
from pyquant.trace.record import Call, Trace
from pyquant.trace.render import render_comparison, render_losses, render_sites, render_trace
from pyquant.trace.sites import SiteRecord, SiteTrace, sites
from pyquant.trace.values import Leaf, Statistics, TensorValue, Tree, describe, statistics

__all__ = [
    "Call",
    "Comparison",
    "Difference",
    "Entry",
    "Leaf",
    "Loss",
    "SiteRecord",
    "SiteTrace",
    "Statistics",
    "TensorValue",
    "Trace",
    "TraceError",
    "Tree",
    "capture",
    "compare",
    "counterparts",
    "describe",
    "difference",
    "losses",
    "render_comparison",
    "render_losses",
    "render_sites",
    "render_trace",
    "sensitivity",
    "sites",
    "statistics",
]


def __getattr__(name: str) -> Any:
    if name == "sensitivity":
        return importlib.import_module("pyquant.sensitivity").sensitivity
    raise AttributeError(f"module 'pyquant.trace' has no attribute {name!r}; it has {', '.join(__all__)}")
