# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: which sites of a converted tree damage the output most, and the mixed-precision policy that follows.

It owns the measurement and its result; `pyquant.trace.sensitivity` is the same function.
"""

from __future__ import annotations

from pyquant.sensitivity.formats import Bits, Part, SiteFormat
from pyquant.sensitivity.measure import sensitivity
from pyquant.sensitivity.result import Damage, GroupDamage, Sensitivity

__all__ = ["Bits", "Damage", "GroupDamage", "Part", "Sensitivity", "SiteFormat", "sensitivity"]
