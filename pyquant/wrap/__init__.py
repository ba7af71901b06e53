# SPDX-License-Identifier: Apache-2.0
"""Wrappers: the base, the registry, and the pieces that models share.

It owns the names that model rooms build on; importing it registers the shared pieces. Models are models/.
"""

from __future__ import annotations

from pyquant.site import Phase, Role, Site
from pyquant.wrap import registry
from pyquant.wrap.adapter import GraphAdapter
from pyquant.wrap.base import QModule, WrapContext, phase, set_phase
from pyquant.wrap.registry import register, wrap

# Imported for their registrations; the names stay theirs.
from pyquant.wrap import (  # isort: skip
    activation as _activation,  # noqa: F401
    attention as _attention,  # noqa: F401
    conv as _conv,  # noqa: F401
    embedding as _embedding,  # noqa: F401
    gated_mlp as _gated_mlp,  # noqa: F401
    linear as _linear,  # noqa: F401
    norm as _norm,  # noqa: F401
    passthrough as _passthrough,  # noqa: F401
    rotary as _rotary,  # noqa: F401
    softmax as _softmax,  # noqa: F401
)

__all__ = [
    "GraphAdapter",
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
