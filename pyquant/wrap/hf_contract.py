# SPDX-License-Identifier: Apache-2.0
"""The contract with transformers: a class that is none of those its wrapper was written for is refused, not wrapped.

It owns comparing the installed release (hf_facts.py) with the recorded ones (hf_records.py), and the one line that says
what differs. `make contracts` lists all of it.
"""

from __future__ import annotations

import ast
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator

from torch import nn

from pyquant.errors import CompatibilityError, UnknownModuleError
from pyquant.wrap import hf_records, registry
from pyquant.wrap.base import QModule
from pyquant.wrap.hf_facts import CACHE_MODULE, CACHE_NAMES, cache_facts, facts, output_class, takes_cache

OVERRIDE = "PYQUANT_ALLOW_UNKNOWN_TRANSFORMERS"


def require(classes: Iterable[type[nn.Module]]) -> None:
    """Raise CompatibilityError unless each of `classes` is what its wrapper was written for; each is compared once.

    Only classes of transformers whose wrapper is pyquant's have a contract. With the environment variable
    PYQUANT_ALLOW_UNKNOWN_TRANSFORMERS=1 the error is a UserWarning.
    """
    found: list[str] = []
    known = [cls for cls in dict.fromkeys(classes) if has_contract(cls)]
    for cls in known:
        found += mismatches(cls)
    if any(map(takes_cache, known)):
        found += cache_mismatches()
    if not found:
        return
    import transformers

    more = f"; and {len(found) - 1} more, listed by `make contracts`" if len(found) > 1 else ""
    line = f"transformers {transformers.__version__} is not what pyquant's wrappers were written for: {found[0]}{more}"
    if os.environ.get(OVERRIDE) == "1":
        warnings.warn(f"{line}; {OVERRIDE}=1 is set, so it is used all the same", UserWarning, stacklevel=4)
        return
    raise CompatibilityError(
        f"{line}; install a release from {hf_records.supported()}, or set {OVERRIDE}=1 to try this one (its results "
        "may be wrong without any error)"
    )


def has_contract(cls: type[nn.Module]) -> bool:
    """Whether `cls` is a class of transformers with a wrapper of pyquant's own."""
    if not cls.__module__.startswith("transformers."):
        return False
    try:
        return registry.wrapper_of(cls).__module__.startswith("pyquant.")
    except UnknownModuleError:
        return False


def mismatches(cls: type[nn.Module]) -> list[str]:
    """What differs between `cls` as installed and every recorded release: `Class.forward: ...`, one entry an aspect."""
    key = (cls, cls.forward, cls.__init__, output_class(cls))  # what a caller puts in their place is compared anew
    if key not in _COMPARED:
        _COMPARED[key] = tuple(_mismatches(cls))
    return list(_COMPARED[key])


def cache_mismatches() -> list[str]:
    """The same of transformers' KV cache, for wrappers that take one."""
    recorded = hf_records.records(hf_records.SHARED).get(CACHE_MODULE, {})
    found = [(name, value, [*recorded.get(name, {}).values()]) for name, value in cache_facts().items()]
    return [_cache_differs(name, value, known) for name, value, known in found if value not in known]


_COMPARED: dict[tuple[object, ...], tuple[str, ...]] = {}


def _mismatches(cls: type[nn.Module]) -> Iterator[str]:
    wrapper = registry.wrapper_of(cls)
    recorded = hf_records.records(hf_records.home(cls)).get(cls.__name__)
    if recorded is None:
        yield f"{cls.__name__} has no record in {hf_records.home(cls).relative_to(hf_records.ROOT.parent)}"
        return
    for aspect, value in facts(cls).items():
        if line := _difference(cls.__name__, aspect, value, recorded.get(aspect, {})):
            yield line
    yield from _unknown_to(wrapper, cls)


def _difference(cls: str, aspect: str, value: str | None, history: hf_records.History) -> str:
    """One line, empty where `value` is what some release had."""
    if value in history.values():
        return ""
    known = list(history.values())
    if aspect == "forward" and value is not None:
        return f"{cls}.forward {_parameters_differ(value, [old for old in known if old is not None])}"
    if aspect == "output":
        return f"{cls}.forward returns {value or 'no output class'}, expected {known[-1] if known else 'none'}"
    if aspect == "sets":
        old, new = ({*(text or "").split(", ")} for text in (known[-1] if known else "", value))
        return f"{cls}.__init__ {_gained_and_lost(sorted(new - old), sorted(old - new), 'sets')}"
    if aspect == "code":
        return f"{cls}.forward or __init__ (or what they call) computes in another way than in any recorded release"
    return f"{cls}.forward builds its attention mask by code that is none of the recorded releases'"


def _cache_differs(name: str, value: str | None, known: list[str | None]) -> str:
    if value is None:
        return f"{name} of {CACHE_MODULE} does not exist"
    parameters = [old.rpartition(" ")[0] for old in known if old]
    now = value.rpartition(" ")[0]
    if now in parameters:
        return f"{name} of {CACHE_MODULE} computes in another way than in any recorded release"
    return f"{name} of {CACHE_MODULE} takes {now}, expected {parameters[-1] if parameters else 'nothing recorded'}"


def _parameters_differ(value: str, known: list[str]) -> str:
    """What is new or gone, compared with the recorded signature that is nearest; the newest of several."""
    now = _by_name(value)
    old = max(map(_by_name, reversed(known)), key=lambda names: len(names.items() & now.items()), default={})
    gained, lost = ([name for name in a if name not in b] for a, b in ((now, old), (old, now)))
    if gained or lost:
        return _gained_and_lost(gained, lost, "takes")
    changed = [f"{name} is {now[name]!r}, was {old[name]!r}" for name in now if now[name] != old[name]]
    return f"has other defaults: {', '.join(changed)}" if changed else f"takes its parameters in another order: {value}"


def _by_name(parameters: str) -> dict[str, str]:
    """name -> the whole parameter, of a signature as text (a comma inside a default stays with it)."""
    function = ast.parse(f"def f({parameters}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    of = function.args
    plain = [*of.posonlyargs, *of.args]
    defaults = [None] * (len(plain) - len(of.defaults)) + list(of.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(of.kwonlyargs, of.kw_defaults, strict=True)]
    found = {arg.arg: arg.arg if default is None else f"{arg.arg}={ast.unparse(default)}" for arg, default in pairs}
    return found | {arg.arg: f"*{arg.arg}" for arg in (of.vararg, of.kwarg) if arg is not None}


def _gained_and_lost(gained: list[str], lost: list[str], verb: str) -> str:
    words = []
    if gained:
        words.append(f"{verb} {', '.join(map(repr, gained))}, which no recorded release has")
    if lost:
        words.append(f"no longer {verb} {', '.join(map(repr, lost))}")
    return " and ".join(words)


def _unknown_to(wrapper: type[QModule], cls: type[nn.Module]) -> Iterator[str]:
    """Parameters of HF's forward that the wrapper neither names nor lists, and that its **kwargs would swallow."""
    own = inspect.signature(wrapper.forward).parameters.values()
    kinds = {parameter.kind for parameter in own}
    if inspect.Parameter.VAR_KEYWORD not in kinds or inspect.Parameter.VAR_POSITIONAL in kinds:  # the rest is handed on
        return
    known = {*(parameter.name for parameter in own), *wrapper.ACCEPTED}
    known |= {*CACHE_NAMES} if CACHE_NAMES[0] in known else set()  # hf.take_cache reads the older ones
    for parameter in inspect.signature(cls.forward).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name not in known:
            yield f"{cls.__name__}.forward takes {parameter.name!r}, which {wrapper.__name__} does not have"
