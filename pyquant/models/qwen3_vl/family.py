# SPDX-License-Identifier: Apache-2.0
"""The Family object of qwen3_vl; see pyquant.models.family."""

from __future__ import annotations

from pyquant.models.family import Family
from pyquant.models.qwen3_vl import example, request
from pyquant.models.qwen3_vl.alone import alone
from pyquant.models.qwen3_vl.host import host

FAMILY = Family("qwen3_vl", example, request, alone, host)
