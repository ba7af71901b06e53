# SPDX-License-Identifier: Apache-2.0
"""The trace: calls in the order in which they returned, and its form as JSON and as a folder.

It owns these forms. Recording is capture.py.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyquant import files
from pyquant.trace.errors import TraceError
from pyquant.trace.store import DiskStore, MemoryStore, TensorStore
from pyquant.trace.values import Recorded, TensorValue, Tree, from_data, tensors_of, to_data

FORMAT = "pyquant-trace-1"
PARTS = ("inputs", "kwargs", "output")


@dataclass(frozen=True)
class Call:
    """One call of one module, as it was when it returned.

    `name` is the path in the model ('' is the model itself), `repeat` counts the calls of that name from 0. An input
    that the call changed in place (a KV cache) is recorded as changed.
    """

    name: str
    type: str
    repeat: int
    inputs: Tree
    kwargs: Tree
    output: Recorded

    @property
    def title(self) -> str:
        """The name to show: `(model)` for the model itself, `name #2` for the second call of a module."""
        return (self.name or "(model)") + (f" #{self.repeat + 1}" if self.repeat else "")

    def tensors(self) -> Iterator[tuple[str, TensorValue]]:
        """Each tensor of the call with its path, such as `kwargs.hidden_states` or `output.0`."""
        for part in PARTS:
            yield from tensors_of(getattr(self, part), part)


@dataclass
class Trace:
    """The calls of a model in the order in which they returned (children before parents)."""

    model: str
    calls: list[Call] = field(default_factory=list)
    store: TensorStore = field(default_factory=MemoryStore, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def find(self, pattern: str) -> list[Call]:
        """The calls whose module name matches a glob such as `encoder.layers.*.mlp`; '' is the model itself."""
        return [call for call in self.calls if fnmatch.fnmatchcase(call.name, pattern)]

    def tensor(self, value: TensorValue) -> Tensor:
        """The full tensor of a value; raises TraceError when it was not kept."""
        if value.key is None:
            raise TraceError(
                f"this {value.dtype} tensor of shape {value.shape} was not kept; capture with tensors='*' or a pattern"
            )
        try:
            return self.store.get(value.key)
        except KeyError:
            raise TraceError(
                f"tensor {value.key} is not in the trace's store; a trace read from JSON alone has no tensors, "
                "Trace.load(folder) has"
            ) from None

    def to_json(self) -> str:
        """All but the full tensors; equal traces give equal text."""
        calls = [
            {"name": call.name, "type": call.type, "repeat": call.repeat}
            | {part: to_data(getattr(call, part)) for part in PARTS}
            for call in self.calls
        ]
        return json.dumps({"format": FORMAT, "model": self.model, "calls": calls}, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that `to_json` wrote; it has no full tensors."""
        data = parse(text, FORMAT)
        try:
            return cls(data["model"], [_call(item) for item in data["calls"]])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"a trace whose JSON is not as to_json writes it: {error!r}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `trace.json` and the kept tensors (`tensors/*.safetensors`) into a folder, all of them or none.

        Raises TraceError for a folder that has a trace already, OSError.
        """
        folder = Path(folder)
        refuse_existing(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.folder(folder, last="trace.json") as new:
            disk = DiskStore(new / "tensors")
            for key in sorted({value.key for call in self for _, value in call.tensors() if value.key is not None}):
                disk.write(key, self.store.get(key))
            self.save_calls(new)

    def save_calls(self, folder: Path) -> None:
        """Writes `trace.json` alone into a folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        files.whole_text(folder / "trace.json", self.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """The trace that `save`, or `capture(folder=...)`, wrote; tensors are read on access."""
        folder = Path(folder)
        path = folder / "trace.json"
        if not path.is_file():
            raise TraceError(f"{folder} has no trace: there is no {path.name}")
        if why := files.absent(path):
            raise TraceError(f"{str(path)!r} {why}")
        trace = cls.from_json(path.read_text(encoding="utf-8"))
        trace.store = DiskStore(folder / "tensors")
        return trace


def refuse_existing(folder: Path) -> None:
    """Raises a TraceError when the folder has a trace already."""
    if (folder / "trace.json").exists() or (folder / "tensors").exists():
        raise TraceError(f"{folder} already has a trace; name another folder or remove it")


def parse(text: str, expected: str) -> Mapping[str, Any]:
    """The JSON object of a text whose `format` is `expected`. Raises TraceError for anything else."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise TraceError(f"not JSON of format {expected!r}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != expected:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise TraceError(f"the JSON's format is {found!r}, expected {expected!r}")
    return data


def _call(item: Mapping[str, Any]) -> Call:
    inputs, kwargs, output = (from_data(item[part]) for part in PARTS)
    if not (isinstance(inputs, Tree) and isinstance(kwargs, Tree)):
        raise TypeError(f"inputs and kwargs are trees: {inputs = }, {kwargs = }")
    return Call(item["name"], item["type"], item["repeat"], inputs, kwargs, output)
