# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps Qwen3-VL, found by name and never by version.

It owns the one loud line that a missing or renamed class causes. What is done with a class is its wrapper's business.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

_HOME = "transformers.models.qwen3_vl.modeling_qwen3_vl"
_KNOWN = "pyquant.models.qwen3_vl knows 5.5.4 to 5.23"


def hf_class(name: str) -> type[Any]:
    """The class `name` of transformers' Qwen3-VL. Raises ImportError when this release of transformers has none."""
    found = hf_find(name)
    if found is None:
        raise ImportError(
            f"transformers {transformers.__version__} has no class {name} in {_HOME}; {_KNOWN}: install one of these, "
            "or tell us the new name"
        )
    return found


def hf_find(name: str) -> type[Any] | None:
    """The class `name`, or None: for what only some releases have. Raises ImportError without any Qwen3-VL."""
    found = getattr(_home(), name, None)
    return found if isinstance(found, type) else None


def _home() -> ModuleType:
    try:
        return importlib.import_module(_HOME)
    except ImportError as error:
        raise ImportError(
            f"transformers {transformers.__version__} has no {_HOME} ({error}); {_KNOWN}: install one of these"
        ) from error


@dataclass
class _DeepstackOutput(BaseModelOutputWithPooling):
    """The fields of HF's class, for a release that has none of its name."""

    deepstack_features: list[Tensor] | None = None


def vision_output(**fields: Any) -> Any:
    """HF's output of the vision model: last_hidden_state (N, V), pooler_output (n, D), deepstack_features [(n, D)]."""
    return (hf_find("BaseModelOutputWithDeepstackFeatures") or _DeepstackOutput)(**fields)
