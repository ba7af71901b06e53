# SPDX-License-Identifier: Apache-2.0
"""Likeness: a value that is equal for two modules when their forwards are recorded as the same operations.

It owns what is compared: classes, plain attributes, the form of every tensor (never its values), and which tensors are
one. A class declares with `UNTRACED` the attributes that its operations do not depend on; whatever cannot be compared
by value is equal to itself alone. How a graph uses it is exporter/templates.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from enum import Enum
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_INTERNAL = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (int, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, type, Enum)
_FUNCTIONS = (FunctionType, BuiltinFunctionType)


def likeness(module: nn.Module) -> Hashable:
    """Of a module with all below it. Equal ones perform the same operations on their own tensors, when called alike."""
    return _likeness(module, {})


def _likeness(module: nn.Module, tensors: dict[int, int]) -> Hashable:
    own = vars(module)
    if any(own[hooks] for hooks in _HOOKS):  # they may do anything
        return ("is", id(module))
    kind: Any = type(module)
    skipped = _untraced(kind)
    attributes = tuple((k, frozen(v)) for k, v in own.items() if k not in _INTERNAL and k not in skipped)
    state: Callable[[], Hashable] = getattr(module, "traced_state", tuple)
    places = [*own["_parameters"].items(), *own["_buffers"].items()]
    forms = tuple((n, None if t is None else (form(t), tensors.setdefault(id(t), len(tensors)))) for n, t in places)
    children = tuple((n, None if m is None else _likeness(m, tensors)) for n, m in own["_modules"].items())
    fleeting = frozenset(own["_non_persistent_buffers_set"])
    return (kind, own["training"], attributes, state(), forms, fleeting, children)


@cache
def _untraced(kind: Any) -> frozenset[str]:
    return frozenset(name for cls in kind.__mro__ for name in vars(cls).get("UNTRACED", ()))


def form(tensor: Tensor) -> Hashable:
    """All that a recorded operation can know of a tensor: not its values."""
    kind = Tensor if type(tensor).__module__.startswith("torch") else type(tensor)
    return (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad, kind)


def frozen(value: Any) -> Hashable:
    """A value by which two attributes or arguments can be compared; one that is no plain data is itself alone."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, float):  # 0.0 and -0.0 are two numbers, NaN is one
        return (float, value.hex())
    if isinstance(value, tuple | list):
        return (type(value), tuple(map(frozen, value)))
    if type(value) is dict:
        return (dict, tuple((frozen(k), frozen(v)) for k, v in value.items()))
    if isinstance(value, _FUNCTIONS) and getattr(value, "__closure__", None) is None:
        return value
    if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:  # type: ignore[union-attr]
        return (type(value), tuple(frozen(getattr(value, each.name)) for each in dataclasses.fields(value)))
    return ("is", id(value))
