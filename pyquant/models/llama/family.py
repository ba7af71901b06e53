# SPDX-License-Identifier: Apache-2.0
"""The Family object of llama; see pyquant.models.family."""

from __future__ import annotations

from pyquant.decoder.alone import alone
from pyquant.decoder.host import Host
from pyquant.models.family import Family
from pyquant.models.llama import example, request

FAMILY = Family("llama", example, request, alone, Host)
