# SPDX-License-Identifier: Apache-2.0
"""The description of a call's inputs and outputs: nested values, tensors as dtype, shape, statistics.

It owns this form. When to describe is capture.py, the tensors themselves are store.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyquant import ops

Scalar = bool | int | float | str | None
Kind = Literal["sequence", "mapping"]

_NATIVE = {torch.float32, torch.bfloat16, torch.float16}
_TINY_INTEGERS = {torch.bool, torch.int8, torch.uint8, torch.int16}
_INTEGERS = _TINY_INTEGERS | {torch.int32, torch.int64}
_EXACT = 2**24  # each integer up to it is a float32

MAX_TEXT = 200
MAX_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean, minimum, maximum and population standard deviation over the finite elements of a tensor.

    All four are None when there is no finite element. `elements` counts all, `nonfinite` those that are NaN or
    infinite. A bool counts as 0 or 1; a complex element counts as its two parts.
    """

    elements: int
    nonfinite: int = 0
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    std: float | None = None


@dataclasses.dataclass(frozen=True)
class TensorValue:
    """A tensor: its class, its dtype (such as `float32`), its shape and its statistics.

    Statistics are None where a device has no data (meta). `key` finds the full tensor in the trace's store, if it
    was kept.
    """

    type: str
    dtype: str
    shape: tuple[int, ...]
    statistics: Statistics | None = None
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Anything without a tensor in it: None, a number or a text (to 200 characters) by value, else only the type."""

    type: str
    value: Scalar = None


@dataclasses.dataclass(frozen=True)
class Tree:
    """A container: items in order under their names. A `mapping` has its own names, a `sequence` is numbered."""

    type: str
    kind: Kind
    items: tuple[tuple[str, Recorded], ...]

    def __len__(self) -> int:
        return len(self.items)


Recorded = TensorValue | Leaf | Tree
Keep = Callable[[Tensor], TensorValue]

_NONE = Leaf("NoneType")
_PLACES = tuple(map(str, range(64)))
_NO_NAMES = Tree("dict", "mapping", ())


def tensors_of(value: Recorded, path: str = "") -> Iterator[tuple[str, TensorValue]]:
    """Each tensor of a value, depth first, with its path, such as `past_key_values.layers.0.keys`."""
    if isinstance(value, TensorValue):
        yield path, value
    elif isinstance(value, Tree):
        for name, item in value.items:
            yield from tensors_of(item, f"{path}.{name}" if path else name)


# --- statistics ------------------------------------------------------------------------------------------------------


def as_real(x: Tensor) -> Tensor:
    """The elements of any tensor as a dense real one: float32 or float64, complex as pairs."""
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.float() if x.is_floating_point() else x.double()


def statistics(x: Tensor) -> Statistics | None:
    """Statistics of a tensor of any dtype and size; None when its device has no data (meta)."""
    if x.is_meta:
        return None
    if x.dtype not in _NATIVE or x.layout != torch.strided:
        with torch.no_grad():
            x = _small(x) if x.dtype in _INTEGERS and x.layout == torch.strided else as_real(x)
    elements = x.numel()
    if x.dtype not in _NATIVE:
        with torch.no_grad():
            return _statistics_of_doubles(x.detach())
    mean, low, high, std, nonfinite = ops.tensor_stats(x).tolist()
    if nonfinite == elements:
        return Statistics(elements, elements)
    return Statistics(elements, int(nonfinite), mean, low, high, std)


def _small(x: Tensor) -> Tensor:
    """Integers as float32 where that is exact (the native operator's type), else as float64."""
    if x.dtype in _TINY_INTEGERS or x.numel() == 0:
        return x.float()
    low, high = torch.aminmax(x)
    return x.float() if int(low) >= -_EXACT and int(high) <= _EXACT else x.double()


def _statistics_of_doubles(x: Tensor) -> Statistics:
    """Of a float64 tensor, which the native operator does not accept: mostly integers."""
    elements = x.numel()
    if elements == 0:
        return Statistics(elements=0)
    low, high = (float(v) for v in torch.aminmax(x))
    if math.isfinite(low) and math.isfinite(high):
        mean, std = _mean_std(x, low, high)
        if math.isfinite(std) and math.isfinite(mean):
            return Statistics(elements, 0, mean, low, high, std)
    # Some element is not finite, or the sums overflow (masks filled with the most negative float do that).
    finite = x[torch.isfinite(x)]
    nonfinite = elements - finite.numel()
    if finite.numel() == 0:
        return Statistics(elements, nonfinite)
    low, high = (float(v) for v in torch.aminmax(finite))
    scale = max(abs(low), abs(high)) or 1.0
    mean, std = _mean_std(finite / scale, low / scale, high / scale)
    return Statistics(elements, nonfinite, mean * scale, low, high, std * scale)


def _mean_std(x: Tensor, low: float, high: float) -> tuple[float, float]:
    """Mean and population standard deviation; a few vectorized passes, ten times faster than torch.std_mean."""
    if low == high:
        return low, 0.0
    mean = float(x.sum()) / x.numel()
    length = float(torch.linalg.vector_norm(x))
    power = length * length / x.numel()  # not **, which raises on overflow where this gives infinity
    if mean * mean < power / 2:
        return mean, math.sqrt(power - mean * mean)
    # The difference would cancel: shift first, which costs a copy.
    return mean, float(torch.linalg.vector_norm(x - mean)) / math.sqrt(x.numel())


def describe_tensor(x: Tensor) -> TensorValue:
    """Type, dtype, shape and statistics of one tensor."""
    return TensorValue(type(x).__name__, str(x.dtype)[6:], tuple(x.shape), statistics(x))


# --- nested values ---------------------------------------------------------------------------------------------------


def describe(value: object, keep: Keep = describe_tensor) -> Recorded:
    """Any argument or output of a module as data.

    Tensors go through `keep`. Tuples, lists, mappings and dataclasses become trees; so does any other object whose
    public attributes contain a tensor (a KV cache). Anything without a tensor becomes a leaf; modules, classes and
    functions always do, and iterators are never consumed.
    """
    return _describe(value, keep, ())


def _describe(value: object, keep: Keep, parents: tuple[int, ...]) -> Recorded:
    # The most frequent types come first: this runs for each argument of each module.
    if isinstance(value, Tensor):
        return keep(value)
    if value is None:
        return _NONE
    kind = type(value)
    if kind is tuple and id(value) not in parents and len(parents) < MAX_DEPTH:
        items: tuple[object, ...] = value  # type: ignore[assignment]
        if len(items) <= len(_PLACES):
            below = (*parents, id(value))
            found = [(_PLACES[i], _describe(item, keep, below)) for i, item in enumerate(items)]
            return Tree("tuple", "sequence", tuple(found))
    if kind is dict and not value:
        return _NO_NAMES
    if kind is bool or kind is int or kind is float or isinstance(value, (bool, int, float)):
        return Leaf(kind.__name__, value)  # type: ignore[arg-type]
    name = kind.__name__
    if isinstance(value, str):
        return Leaf(name, value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 3] + "...")
    if isinstance(value, (torch.dtype, torch.device, torch.layout)):
        return Leaf(name, str(value))
    if id(value) in parents:
        return Leaf(name, "(contains itself)")
    if len(parents) == MAX_DEPTH:
        return Leaf(name, "(nested too deep)")
    parents = (*parents, id(value))

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _tree(name, "mapping", zip(value._fields, value, strict=True), keep, parents)
    if isinstance(value, (tuple, list)):
        return _tree(name, "sequence", zip(map(str, range(len(value))), value, strict=True), keep, parents)
    if isinstance(value, Mapping):
        return _tree(name, "mapping", zip(map(str, value), value.values(), strict=True), keep, parents)
    if isinstance(value, (nn.Module, type)) or callable(value):
        return Leaf(name)
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
        return _tree(name, "mapping", fields, keep, parents)
    tree = _tree(name, "mapping", _attributes(value), keep, parents)
    return tree if next(tensors_of(tree), None) else Leaf(name)


def _tree(name: str, kind: Kind, items: Iterable[tuple[str, Any]], keep: Keep, parents: tuple[int, ...]) -> Tree:
    return Tree(name, kind, tuple([(key, _describe(item, keep, parents)) for key, item in items]))


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    """Public attributes that an object stores, from `__dict__` and `__slots__`; properties are not run."""
    names = list(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    for name in names:
        if not name.startswith("_") and hasattr(value, name):
            yield name, getattr(value, name)


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_data(value: Recorded) -> dict[str, Any]:
    """A value as JSON data; NaN and infinities of leaves as text."""
    if isinstance(value, TensorValue):
        data: dict[str, Any] = {"tensor": value.type, "dtype": value.dtype, "shape": list(value.shape)}
        if value.statistics is not None:
            data["statistics"] = dataclasses.asdict(value.statistics)
        if value.key is not None:
            data["key"] = value.key
        return data
    if isinstance(value, Leaf):
        plain = value.value
        return {"leaf": value.type, "value": str(plain) if _non_finite(plain) else plain}
    return {"tree": value.type, "kind": value.kind, "items": [[name, to_data(item)] for name, item in value.items]}


def from_data(data: Mapping[str, Any]) -> Recorded:
    """The inverse of `to_data`."""
    if "tensor" in data:
        found = data.get("statistics")
        known = Statistics(**found) if found is not None else None
        return TensorValue(data["tensor"], data["dtype"], tuple(data["shape"]), known, data.get("key"))
    if "leaf" in data:
        plain = data["value"]
        return Leaf(data["leaf"], float(plain) if data["leaf"] == "float" and isinstance(plain, str) else plain)
    if "tree" in data:
        return Tree(data["tree"], data["kind"], tuple((name, from_data(item)) for name, item in data["items"]))
    raise ValueError(f"not a traced value: it has the keys {sorted(data)}, and none of tensor, leaf, tree")


def _non_finite(value: Scalar) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
