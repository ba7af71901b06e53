# SPDX-License-Identifier: Apache-2.0
"""The norm that all parts of Gemma4 have.

It owns naming the HF class. The arithmetic is pyquant.wrap.norm's.
"""

from __future__ import annotations

from pyquant.models.gemma4.hf import hf_class
from pyquant.wrap.norm import QuantRMSNorm
from pyquant.wrap.registry import register


@register(hf_class("Gemma4RMSNorm"))
class QuantGemma4RMSNorm(QuantRMSNorm):
    """Gemma4's norm multiplies by `weight` as it is (no 1 + weight), or by nothing when built without a scale."""
