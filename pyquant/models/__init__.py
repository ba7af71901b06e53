# SPDX-License-Identifier: Apache-2.0
"""The model families of pyquant: `from pyquant.models import gemma4`, or found for a model's class.

It owns the list of families and the one lookup. What a family is, is family.py; each is a folder here, loaded when a
model needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyquant.errors import UnknownModuleError
from pyquant.wrap import registry

if TYPE_CHECKING:
    from torch import nn

    from pyquant.models.family import Family
    from pyquant.wrap import QModule

#: Each is pyquant.models.<name> and transformers.models.<name>.
FAMILIES = ("gemma4", "llama", "qwen3_vl")


def by_name(name: str) -> Family:
    """The family of that name; importing it registers its wrappers. Raises UnknownModuleError."""
    if name not in FAMILIES:
        raise UnknownModuleError(f"there is no model family {name!r}; there are {', '.join(FAMILIES)}")
    found: Family = importlib.import_module(f"{__name__}.{name}.family").FAMILY
    return found


def name_of(cls: type) -> str | None:
    """The family of a class of transformers, or of one that derives from it; None for a class of no family here."""
    for base in cls.__mro__:
        parts = base.__module__.split(".")
        if parts[:2] == ["transformers", "models"] and len(parts) > 2 and parts[2] in FAMILIES:
            return parts[2]
    return None


def family_of(cls: type) -> Family:
    """The family of a class of transformers. Raises UnknownModuleError."""
    name = name_of(cls)
    if name is None:
        raise UnknownModuleError(
            f"{cls.__name__} belongs to no model family of pyquant ({', '.join(FAMILIES)}), so its inputs and bundles "
            "are not known; use a model of one of them, or register wrappers for its classes and quantize it from "
            "Python: pyquant.prepare, calibrate, convert, export"
        )
    return by_name(name)


def load(classes: Iterable[type]) -> None:
    """Register the wrappers of every family that one of `classes` belongs to."""
    for name in sorted({name for cls in set(classes) if (name := name_of(cls)) is not None}):
        by_name(name)


def wrapper_of(cls: type[nn.Module]) -> type[QModule]:
    """The wrapper of exactly `cls`, after loading its family. Raises UnknownModuleError that lists what exists."""
    load([cls])
    return registry.wrapper_of(cls)


def find(qualified: str) -> type[nn.Module] | None:
    """The registered class of a name such as `transformers.models.llama.modeling_llama:LlamaForCausalLM`, after loading
    its family; None if there is none."""
    parts = qualified.partition(":")[0].split(".")
    if parts[:2] == ["transformers", "models"] and len(parts) > 2 and parts[2] in FAMILIES:
        by_name(parts[2])
    return registry.find(qualified)
