# SPDX-License-Identifier: Apache-2.0
"""Wrappers: the base, the registry, and the pieces that models share.

It owns the names that model rooms build on; importing it registers the shared pieces. Models are models/.
"""

from __future__ import annotations

from pyquant.wrap import registry
from pyquant.wrap.adapter import ExportAdapter
from pyquant.wrap.base import QModule, WrapContext, phase, set_phase
from pyquant.wrap.registry import register, wrap

from pyquant.site import Phase, Role, Site  # isort: skip

__all__ = [
    "ExportAdapter",
    "Phase",
    "QModule",
    "Role",
    "Site",
    "WrapContext",
    "phase",
    "register",
    "registry",
    "set_phase",
    "wrap",
]
