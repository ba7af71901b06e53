# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps Qwen3-VL; see pyquant.wrap.hf."""

from __future__ import annotations

from pyquant.wrap.hf import Home

hf_class = Home("qwen3_vl").cls
