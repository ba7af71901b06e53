# SPDX-License-Identifier: Apache-2.0
"""TensorSpec and ExportProfile: the static shapes, types and names of one exported graph.

It owns the interface of a graph. What a model precomputes for a profile belongs to that model's adapter.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from pyquant.errors import ProfileError


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one graph input: `TensorSpec((1, 64, 768), torch.float32)`. Every size is known.

    `dynamic` names one axis whose size the file leaves open (shape signature -1); its size here is the one that the
    graph is traced at, at least 2. All open axes of a graph have one length, and its operators must work at any.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    dynamic: int | None = None

    def __post_init__(self) -> None:
        try:
            shape = tuple(int(size) for size in self.shape)
        except (TypeError, ValueError) as error:
            raise ProfileError(f"a TensorSpec shape is a sequence of integers, got {self.shape!r}") from error
        if any(size < 1 for size in shape):
            raise ProfileError(f"every size of a static graph is at least 1, got shape {shape}")
        if not isinstance(self.dtype, torch.dtype):
            raise ProfileError(f"a TensorSpec dtype is a torch.dtype such as torch.float32, got {self.dtype!r}")
        object.__setattr__(self, "shape", shape)
        if self.dynamic is not None and not (0 <= self.dynamic < len(shape) and shape[self.dynamic] > 1):
            raise ProfileError(
                f"dynamic names an axis of the shape, traced at a size of at least 2; got dynamic={self.dynamic!r} and "
                f"shape {shape}"
            )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True for a shape that the graph takes: this one, or another length of the open axis."""
        return len(shape) == len(self.shape) and all(
            seen == size or (axis == self.dynamic and seen > 0)
            for axis, (seen, size) in enumerate(zip(shape, self.shape, strict=True))
        )

    def example(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Zeros of this shape and type: an example input for tracing."""
        return torch.zeros(self.shape, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        sizes = ["any" if axis == self.dynamic else str(size) for axis, size in enumerate(self.shape)]
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"


@dataclass(frozen=True)
class ExportProfile:
    """Names, shapes and types of a graph's inputs in call order, and the names of its outputs in return order.

    Raises ProfileError for a name that is no identifier, used twice, or an input that is not a TensorSpec.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...] = ("output",)
    name: str = field(default="model", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.outputs, str):
            raise ProfileError(
                f"outputs is a tuple of names, got the string {self.outputs!r}; write ({self.outputs!r},)"
            )
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        check_interface(self.inputs, self.outputs)


@dataclass(frozen=True)
class Alone:
    """What `pyquant.export(q, profile)` takes for a part of a model, and the graph's inputs by name."""

    profile: Any
    inputs: Mapping[str, torch.Tensor]


def check_interface(inputs: Mapping[str, TensorSpec], outputs: tuple[str, ...]) -> None:
    """Raise ProfileError unless names are identifiers, each is used once, and each input has a TensorSpec."""
    for name, spec in inputs.items():
        if not isinstance(spec, TensorSpec):
            raise ProfileError(f"input {name!r} needs a TensorSpec(shape, dtype), got {type(spec).__name__}")
    names = [*inputs, *outputs]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ProfileError(
                f"input and output names are Python identifiers (they become signature names), got {name!r}"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProfileError(f"each input and output needs its own name, but {', '.join(map(repr, twice))} is used twice")
    if not outputs:
        raise ProfileError("a graph needs at least one output name")
