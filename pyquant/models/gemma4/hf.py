# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps Gemma4; see pyquant.wrap.hf."""

from __future__ import annotations

from pyquant.wrap.hf import Home

home = Home("gemma4")
hf_class = home.cls
