# SPDX-License-Identifier: Apache-2.0
"""What a caller hands to a runtime, put into the order of the graph's inputs.

It owns names and counts. Shapes and types are each runtime's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyquant.errors import InputError

Inputs = Mapping[str, Any] | Sequence[Any]


def ordered(names: Sequence[str], inputs: Inputs) -> list[Any]:
    """`inputs` by name or in order, as `names` has them. Raises InputError when names or their number are others."""
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise InputError(f"the graph's inputs are {list(names)}, got {list(inputs)}")
        return [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise InputError(f"the graph has {len(names)} inputs {list(names)}, got {len(inputs)} values")
    return list(inputs)
