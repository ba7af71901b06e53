# SPDX-License-Identifier: Apache-2.0
"""What the installed transformers calls the cache, for calls of its own models: older names are warnings there."""

from __future__ import annotations

import inspect

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from pyquant.wrap.hf_facts import CACHE_NAMES

CACHE = next(name for name in CACHE_NAMES if name in inspect.signature(Qwen3VLTextModel.forward).parameters)
