# SPDX-License-Identifier: Apache-2.0
"""How a part of a model is exported alone: the profile and the graph's inputs, from what it was called with.

It owns the default: every argument is a tensor or absent. A family's own is `alone.py` in its folder; see
family.AloneOf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyquant.errors import ProfileError
from pyquant.exporter.profile import Alone, ExportProfile, TensorSpec
from pyquant.models.family import Family
from pyquant.wrap.base import QModule


def alone(
    q: QModule, arguments: Mapping[str, Any], batch: Mapping[str, Any], outputs: int, family: Family | None = None
) -> Alone:
    """Of a converted wrapper that was called with `arguments` in a run of its model on `batch`.

    outputs: how many tensors it returns. Raises ProfileError for a part that has no graph of its own.
    """
    own = None if family is None else family.alone(q, arguments, batch)
    if own is not None:
        return own
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    others = [name for name, value in arguments.items() if not isinstance(value, Tensor) and _matters(value)]
    if others or not tensors:
        what = f"takes {', '.join(others)}, which are no tensors" if others else "takes no tensor"
        raise ProfileError(f"{type(q).__name__} {what}, so that its shapes alone make no graph")
    names = ("output",) if outputs == 1 else tuple(f"output_{number}" for number in range(outputs))
    specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in tensors.items()}
    return Alone(ExportProfile(specs, names), tensors)


def _matters(value: Any) -> bool:
    return value is not None and not isinstance(value, bool)
