# SPDX-License-Identifier: Apache-2.0
"""The Family object of gemma4; see pyquant.models.family."""

from __future__ import annotations

from pyquant.models.family import Family
from pyquant.models.gemma4 import example, request
from pyquant.models.gemma4 import whole_example as whole
from pyquant.models.gemma4.alone import alone
from pyquant.models.gemma4.audio import example as audio
from pyquant.models.gemma4.text import example as text
from pyquant.models.gemma4.whole_host import host

FAMILY = Family("gemma4", example, request, alone, host, parts=(whole, audio, text))
