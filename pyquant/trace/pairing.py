# SPDX-License-Identifier: Apache-2.0
"""The comparison of two traces: which calls and which values are pairs, and the difference of each pair.

It owns the pairing. The arithmetic is metrics.py, text is render.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyquant.trace.errors import TraceError
from pyquant.trace.metrics import Difference, difference
from pyquant.trace.record import PARTS, Call, Trace, parse
from pyquant.trace.values import Leaf, Recorded, TensorValue, Tree

FORMAT = "pyquant-comparison-1"
Names = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class Entry:
    """The result for one pair of values.

    module, repeat: the call, by its name in `a`. path: the value in it, such as `output.0`.
    a, b: the two values as short text, such as `float32 (2, 16)`. tensors: whether both are tensors.
    difference: for two tensors that were both kept. problem: why the two cannot be compared, or None.
    """

    module: str
    repeat: int
    path: str
    a: str
    b: str
    tensors: bool = False
    difference: Difference | None = None
    problem: str | None = None

    @property
    def status(self) -> str:
        """`error`, `equal`, `differs`, `not kept` (tensors whose data is not in both traces) or `same` (no tensors)."""
        if self.problem is not None:
            return "error"
        if self.difference is None:
            return "not kept" if self.tensors else "same"
        return "equal" if self.difference.equal else "differs"


@dataclass(frozen=True)
class Comparison:
    """The entries in the order of the calls of `a`, and the modules that only one of the two traces has."""

    model_a: str
    model_b: str
    entries: tuple[Entry, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @property
    def errors(self) -> tuple[Entry, ...]:
        """The entries with a problem."""
        return tuple(entry for entry in self.entries if entry.problem is not None)

    def worst(self, count: int = 10) -> tuple[Entry, ...]:
        """The `count` entries of largest PEIR, the largest first."""
        measured = [entry for entry in self.entries if _peir(entry) is not None]
        return tuple(sorted(measured, key=lambda entry: -(_peir(entry) or 0.0))[:count])

    def above(self, peir: float) -> tuple[Entry, ...]:
        """The entries whose PEIR is larger than a threshold (a NaN is), and those with a problem."""
        return tuple(e for e in self.entries if e.problem is not None or not (_peir(e) or 0.0) <= peir)

    def to_json(self) -> str:
        """All of it; infinite metrics as text. Equal comparisons give equal text."""
        data = {"format": FORMAT} | dataclasses.asdict(self)
        return json.dumps(_to_json(data), allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """The comparison that `to_json` wrote."""
        data = parse(text, FORMAT)
        try:
            entries = tuple(_entry(item) for item in data["entries"])
            return cls(data["model_a"], data["model_b"], entries, tuple(data["only_a"]), tuple(data["only_b"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"a comparison whose JSON is not as to_json writes it: {error!r}") from error


def compare(
    a: Trace,
    b: Trace,
    names: Names | None = None,
    parts: Iterable[str] = ("output",),
    *,
    loose_shapes: bool = False,
) -> Comparison:
    """Pairs the calls of two traces and measures how far the values of `b` are from those of `a`, the reference.

    names: module name in `b` -> module name in `a`, as a mapping (a name that is not in it stays) or a function; None
        when both trees have the same names. Two modules of `b` must not get one name.
    parts: which of `inputs`, `kwargs`, `output` to compare.

    The k-th call of a module is paired with the k-th of the same name. A module that only one trace has is listed in
    `only_a` or `only_b`; a module of both that was not called equally often gives an error entry.
    Containers of different type are compared item by item: by name when both have names, else by position (without
    their None items if only so the lengths agree, as HF's tuples leave them out). Values that cannot be paired give an
    error entry.
    loose_shapes: shapes may differ in dimensions of size 1, as those of a convolution over one patch and
    a linear layer do.
    """
    parts = tuple(parts)
    if not parts or not set(parts) <= set(PARTS):
        raise TraceError(f"parts are some of {', '.join(PARTS)}: {parts = }")
    calls_a = {(call.name, call.repeat): call for call in a}
    calls_b = _renamed(b, names)
    known_a, known_b = ({name for name, _ in calls} for calls in (calls_a, calls_b))
    entries: list[Entry] = []
    for (name, repeat), left in calls_a.items():
        right = calls_b.get((name, repeat))
        if right is not None:
            for part in parts:
                entries += _Pair(a, b, name, repeat, loose_shapes).values(
                    part, getattr(left, part), getattr(right, part)
                )
        elif name in known_b:
            problem = f"a calls {name or '(model)'} again, b has no call {repeat + 1} of it"
            entries.append(Entry(name, repeat, "", left.type, "(no call)", problem=problem))
    for (name, repeat), right in calls_b.items():
        if name in known_a and (name, repeat) not in calls_a:
            problem = f"b calls {name or '(model)'} again, a has no call {repeat + 1} of it"
            entries.append(Entry(name, repeat, "", "(no call)", right.type, problem=problem))
    only_a = tuple(dict.fromkeys(name for name, _ in calls_a if name not in known_b))
    only_b = tuple(dict.fromkeys(name for name, _ in calls_b if name not in known_a))
    return Comparison(a.model, b.model, tuple(entries), only_a, only_b)


def _renamed(trace: Trace, names: Names | None) -> dict[tuple[str, int], Call]:
    """The calls of a trace under their new names; TraceError when two modules get the same."""
    origin: dict[str, str] = {}
    calls: dict[tuple[str, int], Call] = {}
    for call in trace:
        name = call.name
        if names is not None:
            name = names.get(name, name) if isinstance(names, Mapping) else names(name)
        if origin.setdefault(name, call.name) != call.name:
            raise TraceError(f"names gives two modules of b the name {name!r}: {origin[name]!r} and {call.name!r}")
        calls[name, call.repeat] = call
    return calls


@dataclass(frozen=True)
class _Pair:
    """Two paired calls, and the recursion over their values."""

    a: Trace
    b: Trace
    module: str
    repeat: int
    loose_shapes: bool

    def values(self, path: str, x: Recorded, y: Recorded) -> Iterator[Entry]:
        """One entry for each pair of tensors and for each problem; for values without either, one entry in total."""
        found = list(self._walk(path, x, y))
        yield from found or [self._entry(path, x, y)]

    def _entry(self, path: str, x: Recorded | None, y: Recorded | None, problem: str | None = None) -> Entry:
        tensors = isinstance(x, TensorValue) and isinstance(y, TensorValue)
        return Entry(self.module, self.repeat, path, _short(x), _short(y), tensors, problem=problem)

    def _walk(self, path: str, x: Recorded, y: Recorded) -> Iterator[Entry]:
        if isinstance(x, TensorValue) and isinstance(y, TensorValue):
            yield self._tensors(path, x, y)
        elif isinstance(x, Tree) and isinstance(y, Tree):
            yield from self._trees(path, x, y)
        elif isinstance(x, Leaf) and isinstance(y, Leaf):
            same = x.value == y.value or (x.value != x.value and y.value != y.value)
            if not same or (x.type != y.type and x.value is None):
                yield self._entry(path, x, y, f"a has {_short(x)}, b has {_short(y)}")
        else:
            yield self._entry(path, x, y, f"a has {_short(x)}, b has {_short(y)}")

    def _trees(self, path: str, x: Tree, y: Tree) -> Iterator[Entry]:
        if x.kind == y.kind == "mapping":
            left, right = dict(x.items), dict(y.items)
            for name in dict.fromkeys([*left, *right]):
                mine, other = left.get(name), right.get(name)
                if mine is not None and other is not None:
                    yield from self._walk(f"{path}.{name}", mine, other)
                elif not _is_none(mine) and not _is_none(other):
                    side = "a" if other is None else "b"
                    yield self._entry(f"{path}.{name}", mine, other, f"only {side} has {name!r}")
            return
        left_items, right_items = list(x.items), list(y.items)
        if len(left_items) != len(right_items):
            left_items, right_items = ([i for i in items if not _is_none(i[1])] for items in (left_items, right_items))
        if len(left_items) != len(right_items):
            yield self._entry(path, x, y, f"a has {len(x)} items, b has {len(y)}")
            return
        for (name, mine), (_, other) in zip(left_items, right_items, strict=True):
            yield from self._walk(f"{path}.{name}", mine, other)

    def _tensors(self, path: str, x: TensorValue, y: TensorValue) -> Entry:
        if x.shape != y.shape and not (self.loose_shapes and _sides(x) == _sides(y)):
            return self._entry(path, x, y, f"shapes differ: a has {x.shape}, b has {y.shape}")
        if _is_float(x) != _is_float(y):
            return self._entry(path, x, y, f"dtypes differ in kind: a has {x.dtype}, b has {y.dtype}")
        if x.key is None or y.key is None:
            return self._entry(path, x, y)
        left, right = self.a.tensor(x), self.b.tensor(y)
        found, clashes = difference(left, right.reshape(left.shape))
        problem = f"{clashes} elements are NaN or infinite in one only, or differently" if clashes else None
        return dataclasses.replace(self._entry(path, x, y, problem), difference=found)


def _short(value: Recorded | None) -> str:
    """A value as short text, for tables and messages."""
    if value is None:
        return "nothing"
    if isinstance(value, TensorValue):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Tree):
        return f"{value.type} of {len(value)}"
    return value.type if value.value is None and value.type != "NoneType" else repr(value.value)


def _sides(value: TensorValue) -> tuple[int, ...]:
    """The shape without dimensions of size 1."""
    return tuple(side for side in value.shape if side != 1)


def _is_none(value: Recorded | None) -> bool:
    return isinstance(value, Leaf) and value.type == "NoneType"


def _is_float(value: TensorValue) -> bool:
    return value.dtype.startswith(("float", "bfloat", "complex"))


def _peir(entry: Entry) -> float | None:
    return None if entry.difference is None else entry.difference.peir


def _to_json(data: Any) -> Any:
    """Numbers that JSON does not have as text, at every level."""
    if isinstance(data, dict):
        return {key: _to_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_to_json(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _entry(item: Mapping[str, Any]) -> Entry:
    found = item["difference"]
    if found is None:
        return Entry(**item)
    metrics: dict[str, Any] = {key: float(value) if isinstance(value, str) else value for key, value in found.items()}
    return Entry(**{**item, "difference": Difference(**metrics)})
