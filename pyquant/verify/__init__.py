# SPDX-License-Identifier: Apache-2.0
"""Verification: run a written file in an independent runtime and measure how far it is from the eager model.

It owns the comparison and the tolerances of "Circle = eager". Exporting is pyquant.exporter, the structure of a file is
pyquant.circle.
"""

from __future__ import annotations

from pyquant.metrics import cosine, lsb_error, max_abs_diff, mean_abs_diff, peir, sqnr_db
from pyquant.verify.fidelity import compare
from pyquant.verify.report import OpDiff, OutputDiff, Report
from pyquant.verify.session import Session
from pyquant.verify.tensors import TensorDiff, TensorReport, tensors
from pyquant.verify.tolerance import fidelity

__all__ = [
    "OpDiff",
    "OutputDiff",
    "Report",
    "Session",
    "TensorDiff",
    "TensorReport",
    "compare",
    "cosine",
    "fidelity",
    "lsb_error",
    "max_abs_diff",
    "mean_abs_diff",
    "peir",
    "sqnr_db",
    "tensors",
]
