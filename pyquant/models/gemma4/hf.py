# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps Gemma4; see pyquant.wrap.hf."""

from __future__ import annotations

from pyquant.wrap.hf import Home

hf_class = Home("gemma4").cls
