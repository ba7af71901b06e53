# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL: every module of transformers' model as a wrapper, static export profiles, the bundle and its host side.

It owns what is particular to Qwen3-VL; importing it registers the wrappers. Shared pieces are pyquant.wrap.
"""

from __future__ import annotations

__all__: list[str] = []
