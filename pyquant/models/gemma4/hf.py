# SPDX-License-Identifier: Apache-2.0
"""Where transformers keeps Gemma4, found by name and never by version.

It owns the one loud line that a missing or renamed class causes. What is done with a class is its wrapper's business.
"""

from __future__ import annotations

import importlib
from typing import Any

import transformers

_HOME = "transformers.models.gemma4.modeling_gemma4"


def hf_class(name: str) -> type[Any]:
    """The class `name` of transformers' Gemma4. Raises ImportError when this release of transformers has none."""
    try:
        home = importlib.import_module(_HOME)
    except ImportError as error:
        raise ImportError(
            f"pyquant.models.gemma4 needs transformers >= 5.5.4, where Gemma4 appears; found "
            f"{transformers.__version__} ({error})"
        ) from error
    found = getattr(home, name, None)
    if not isinstance(found, type):
        raise ImportError(
            f"transformers {transformers.__version__} has no class {name} in {_HOME}; pyquant.models.gemma4 knows "
            "5.5.4 to 5.23: install one of these, or tell us the new name"
        )
    return found
