# SPDX-License-Identifier: Apache-2.0
"""The registry: exact module class -> wrapper class, one way in, duplicates refused.

It owns looking a wrapper up, and saying what exists when there is none. What a wrapper is, is base.py.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from pyquant.errors import UnknownModuleError
from pyquant.wrap import foreign

if TYPE_CHECKING:
    from pyquant.wrap.base import QModule, WrapContext

W = TypeVar("W", bound="type[QModule]")
_WRAPPERS: dict[type[nn.Module], type[QModule]] = {}
# module of transformers -> where its classes get their wrappers; imported when one is met: it imports transformers
_ON_DEMAND = {
    "transformers.activations": "pyquant.wrap.hf_activations",
    "transformers.integrations.gemma_quant": "pyquant.wrap.hf_gemma_quant",
}


def register(*classes: type[nn.Module]) -> Callable[[W], W]:
    """Class decorator: this wrapper replaces exactly these module classes.

    A subclass is another module: its arithmetic may differ, so it needs an entry of its own. Raises
    UnknownModuleError for what is no module class, or already has a wrapper.
    """

    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UnknownModuleError(f"register({cls!r}): expected a class of nn.Module")

    def add(wrapper: W) -> W:
        for cls in classes:
            if _WRAPPERS.get(cls, wrapper) is not wrapper:
                raise UnknownModuleError(
                    f"{qualified(cls)} already has the wrapper {_WRAPPERS[cls].__name__}; {wrapper.__name__} cannot "
                    f"replace it"
                )
            _WRAPPERS[cls] = wrapper
        return wrapper

    return add


def unregister(cls: type[nn.Module]) -> None:
    """Take the wrapper of `cls` out (for tests, and before replacing a wrapper on purpose)."""
    _WRAPPERS.pop(cls, None)


def names() -> tuple[str, ...]:
    """Every registered module class, as module:Class, sorted."""
    return tuple(sorted(qualified(cls) for cls in _WRAPPERS))


def classes() -> tuple[type[nn.Module], ...]:
    """Every registered module class."""
    return tuple(_WRAPPERS)


def qualified(cls: type) -> str:
    """`torch.nn.modules.linear:Linear`: the name that checkpoints record."""
    return f"{cls.__module__}:{cls.__qualname__}"


def find(name: str) -> type[nn.Module] | None:
    """The registered class of a qualified name; None if there is none."""
    return next((cls for cls in _WRAPPERS if qualified(cls) == name), None)


def wrapper_of(cls: type[nn.Module], path: str = "") -> type[QModule]:
    """The wrapper of exactly `cls`. Raises UnknownModuleError that lists what exists."""
    if cls not in _WRAPPERS and cls.__module__ in _ON_DEMAND:
        importlib.import_module(_ON_DEMAND[cls.__module__])
    if cls not in _WRAPPERS:
        raise UnknownModuleError(_unknown(cls, path))
    return _WRAPPERS[cls]


def wrap(fp: nn.Module, ctx: WrapContext) -> QModule:
    """The wrapper tree of `fp`, which is not changed."""
    return wrapper_of(type(fp), ctx.path)(fp, ctx)


def _unknown(cls: type[nn.Module], path: str) -> str:
    if (advice := foreign.advice(cls, path)) is not None:
        return advice
    known = {c.__name__: c for c in _WRAPPERS}
    near = difflib.get_close_matches(cls.__name__, known, n=3, cutoff=0.5)
    base = next((c for c in cls.__mro__[1:] if c in _WRAPPERS), None)
    hint = f" Near: {', '.join(near)}." if near else ""
    if base is not None:
        hint += (
            f" It derives from {base.__name__}; if the arithmetic is the same, "
            f"pyquant.register({cls.__name__})({_WRAPPERS[base].__name__}) is enough."
        )
    where = f"module {path!r}" if path else "the model"
    return (
        f"{where} is a {qualified(cls)}, which has no wrapper. Write one (a QModule with pyquant.register), or use "
        f"one that exists: {', '.join(sorted(known)) or 'none'}.{hint}"
    )
