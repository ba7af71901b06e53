# SPDX-License-Identifier: Apache-2.0
"""The smoke cases: every registered module class with the arguments of a real call, generated, not written by hand.

It owns generating them: a family's tiny model runs once with hooks, and the first call of each class is its case; a
leaf class that no family calls is built from its signature. Running them is run.py.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyquant import models
from pyquant.models.family import Example
from pyquant.wrap import registry
from pyquant.wrap.foreign import READ_MODULES

SIZE = 8  # of every required argument of a leaf's constructor


@dataclass(frozen=True)
class Case:
    """A float module and the arguments of one call of it; `batch` are the arguments of the whole model in that run.

    `positional`: it was called without names, in the order of `call`. `reason`: why there is no call; then `module` is
    None.
    """

    name: str
    cls: type[nn.Module]
    module: nn.Module | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    family: str | None = None
    positional: bool = False
    reason: str = ""

    @property
    def call(self) -> Any:
        """One batch, as for calibrate: a tuple, or a dict of keyword arguments."""
        return tuple(self.arguments.values()) if self.positional else dict(self.arguments)


def cases() -> list[Case]:
    """One for each registered class: families first, then the leaves of torch and transformers, each sorted by name."""
    found: dict[type[nn.Module], Case] = {}
    for family in models.FAMILIES:
        for cls, case in family_cases(family).items():
            found.setdefault(cls, case)
    importlib.import_module("pyquant.wrap.hf_activations")
    for cls in registry.classes():
        if cls not in found and has_case(cls):
            room = models.name_of(cls)
            found[cls] = _leaf(cls) if room is None else _unreached(cls, room)
    return sorted(found.values(), key=lambda case: (case.family is None, case.name))


def has_case(cls: type[nn.Module]) -> bool:
    """Whether a registered class is smoked: one of torch or transformers, but not the layers of quantized checkpoints,
    which hold nothing until a checkpoint is loaded."""
    return cls.__module__.startswith(("torch.", "transformers.")) and cls.__module__ not in READ_MODULES


def family_cases(family: str) -> dict[type[nn.Module], Case]:
    """Class -> its first call while the family's tiny models run on their example inputs, for each registered class."""
    made = models.by_name(family)
    found: dict[type[nn.Module], Case] = {}
    for example in (made.example, *made.parts):
        _run(family, example, found)
    return found


def _run(family: str, example: Example, found: dict[type[nn.Module], Case]) -> None:
    """Add the first calls of classes that are not found yet."""
    model = example.tiny_model()
    _without_cache(model)
    batch = example.example_inputs(model)
    known = set(registry.classes())

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cls = type(module)
        if cls in known and cls not in found:
            # A copy: the model changes its arguments later.
            arguments = copy.deepcopy(_by_name(module, args, kwargs))
            own = family if models.name_of(cls) == family else None
            plain = not kwargs and len(arguments) == len(args)
            found[cls] = Case(_name(cls, own), cls, module, arguments, batch, own, positional=plain)

    handles = [module.register_forward_pre_hook(entered, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of forward's parameters; without None and defaults."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= {key: each for key, each in value.items() if each is not None}
        elif parameter.kind is parameter.VAR_POSITIONAL:
            raise AssertionError(f"{type(module).__name__}.forward takes *{name}, which has no names")
        elif value is not None:
            found[name] = value
    return found


def _without_cache(model: nn.Module) -> None:
    """A cache that later layers write to would be part of earlier layers' arguments."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _leaf(cls: type[nn.Module]) -> Case:
    """A class built from its signature: required arguments are SIZE, and its input is random, (2, SIZE, SIZE).

    One more axis of SIZE for each further axis of a convolution's kernel.
    """
    name = _name(cls, None)
    given: dict[str, Any] = {}
    for key, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            given[key] = SIZE
        elif key == "dim" and parameter.default is None:
            given[key] = -1
    try:
        module = cls(**given).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        return Case(name, cls, None, reason=f"{cls.__name__}({_arguments_text(given)}) cannot be built: {error}")
    generator = torch.Generator().manual_seed(0)
    first = next(_parameters(module), None)
    if first is None:
        return Case(name, cls, None, reason=f"{cls.__name__}.forward takes no named argument")
    axes = len(getattr(module, "kernel_size", (SIZE,)))
    x = torch.randn(2, *[SIZE] * (1 + axes), generator=generator, dtype=torch.float32, device="cpu")
    return Case(name, cls, module, {first: x}, positional=True)


def _parameters(module: nn.Module) -> Iterator[str]:
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            yield name


def _unreached(cls: type[nn.Module], family: str) -> Case:
    return Case(_name(cls, family), cls, None, family=family, reason=f"the tiny model of {family} does not call it")


def _name(cls: type[nn.Module], family: str | None) -> str:
    place = family or ("nn" if cls.__module__.startswith("torch.") else "hf")
    return f"{place}/{cls.__name__}"


def _arguments_text(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in given.items())
