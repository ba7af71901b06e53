# SPDX-License-Identifier: Apache-2.0
"""Algorithms that choose weights, ranges and formats well: each a function of a prepared tree and batches.

It owns the public names. They decide weights of a tree in the CALIBRATE phase (pyquant.weight), before
pyquant.calibrate; none knows a model family.
"""

from __future__ import annotations

from pyquant.algorithms.auto16 import auto16
from pyquant.algorithms.gptq import gptq
from pyquant.algorithms.range_search import range_search
from pyquant.algorithms.rotate import rotate
from pyquant.algorithms.rounding import tune
from pyquant.algorithms.smooth import Smoothed, smooth

__all__ = ["Smoothed", "auto16", "gptq", "range_search", "rotate", "smooth", "tune"]
