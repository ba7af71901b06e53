# SPDX-License-Identifier: Apache-2.0
"""What differs between releases of transformers, found by looking (names, fields, parameters) and never by version.

It owns finding HF's classes, the name of the cache in arguments and outputs, and what a config requires of a forward.
Whether an installed release is one that the wrappers were written for is hf_contract.py's question.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
import transformers

from pyquant.errors import InputError
from pyquant.wrap.hf_facts import CACHE_NAMES
from pyquant.wrap.hf_records import supported


class Home:
    """The module of transformers with a family's classes: `Home("qwen3_vl").cls("Qwen3VLModel")`."""

    def __init__(self, family: str) -> None:
        self.name = f"transformers.models.{family}.modeling_{family}"

    def cls(self, name: str) -> type[Any]:
        """The class `name`. Raises ImportError when this release of transformers has none."""
        found = self.find(name)
        if found is None:
            raise ImportError(
                f"transformers {transformers.__version__} has no class {name} in {self.name}; pyquant supports "
                f"releases {supported()}: install one of these"
            )
        return found

    def find(self, name: str) -> type[Any] | None:
        """The class `name`, or None: for what only some releases have. Raises ImportError without the module."""
        found = getattr(self._module(), name, None)
        return found if isinstance(found, type) else None

    def has(self, name: str) -> bool:
        """Whether this release has a function or class `name` there."""
        return hasattr(self._module(), name)

    def takes(self, name: str, parameter: str) -> bool:
        """Whether the forward of class `name` has `parameter` in this release."""
        return parameter in inspect.signature(self.cls(name).forward).parameters

    def _module(self) -> ModuleType:
        try:
            return importlib.import_module(self.name)
        except ImportError as error:
            raise ImportError(
                f"transformers {transformers.__version__} has no {self.name} ({error}); pyquant supports releases "
                f"{supported()}: install one of these"
            ) from error


# --- the cache ---


def take_cache(cache: Any, kwargs: MutableMapping[str, Any]) -> Any:
    """The KV cache of a call: the argument `cache`, or the one of an older name, which leaves `kwargs`.

    Raises InputError when both are given.
    """
    for name in CACHE_NAMES[1:]:
        older = kwargs.pop(name, None)
        if older is not None:
            if cache is not None:
                raise InputError(f"cache and {name} are two names of one argument; give one of them")
            cache = older
    return cache


def cache_name(holder: Any) -> str:
    """What `holder` (an output, or its class) calls the cache. Raises InputError when it has no field for one."""
    names = field_names(holder if isinstance(holder, type) else type(holder))
    for name in CACHE_NAMES:
        if name in names:
            return name
    raise InputError(f"{holder} has no field for a cache; expected one of {', '.join(CACHE_NAMES)}")


def cache_of(output: Any) -> Any:
    """The cache in an output of HF's or of a wrapper, whatever its field is called."""
    return getattr(output, cache_name(output))


# --- outputs ---


def make_output(cls: type[Any] | None, **values: Any) -> Any:
    """An object of the output class `cls`: QModule.output_type of a wrapper that says OUTPUT.

    The cache is given as `cache`. Fields that the class lacks are left out; a wrapper's contract lists those it has.
    """
    assert cls is not None, "a wrapper that makes an output says OUTPUT"
    known = field_names(cls)
    if "cache" in values:
        values[cache_name(cls)] = values.pop("cache")
    return cls(**{name: value for name, value in values.items() if name in known})


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def field_names(cls: type[Any]) -> tuple[str, ...]:
    """The fields of an output class. torch.compile, which cannot trace dataclasses.fields of a class, takes the result:
    otherwise every module that makes an output ends a graph, and what is around it is traced again for each."""
    return tuple(field.name for field in fields(cls))


def as_called(output: Any, kwargs: Mapping[str, Any], config: Any) -> Any:
    """`output`, or its tuple where `return_dict=False` is in `kwargs` or, if they do not set it, in `config`."""
    wanted = kwargs.get("return_dict")
    if wanted is None:
        wanted = getattr(config, "return_dict", True)
    return output.to_tuple() if wanted is False else output


def refuse_recording(kwargs: Mapping[str, Any], config: Any = None) -> None:
    """Raise InputError where keywords or `config` request hidden states or attentions, which are not computed here."""
    for name in ("output_hidden_states", "output_attentions"):
        asked = kwargs.get(name)
        if asked:
            raise InputError(f"{name}=True is not supported by quantized wrappers; watch the layers with pyquant.trace")
        if asked is None and getattr(config, name, False):
            raise InputError(
                f"{type(config).__name__}.{name} is True, which quantized wrappers do not support: set it to False in "
                f"the config (or pass {name}=False), and watch the layers with pyquant.trace"
            )
