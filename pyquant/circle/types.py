# SPDX-License-Identifier: Apache-2.0
"""The types of Circle files: Fault, and the native Model, Tensor and Operator under their public names.

Functions on them are in files.py; the table of operators is in operators.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from pyquant.circle._native import native

if TYPE_CHECKING:
    import torch

_OWN = re.compile(r"'[^']*'|\[[^\]]*\]|[0-9.-]")  # what differs between faults of one kind
_NAMED = 3  # how many other places a line names

Model = native.Model
Tensor = native.Tensor
Operator = native.Operator
Graph = native.Graph


class Constant(Protocol):
    """A constant whose bytes are made when they are written; its size and type are known before.

    An attribute `file`, where it is not None, is the `data` of a tensor that was read: the bytes are copied from there.
    """

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of what `tensor` returns."""

    def tensor(self) -> torch.Tensor:
        """The bytes as they are in the file, as a tensor of any shape; made anew on each call."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a stable code such as E_SCALE_NOT_FINITE, what was seen and expected, and where."""

    code: str
    message: str
    where: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.where, self.message) if part)


def listed(faults: Iterable[Fault]) -> list[str]:
    """One line for all faults that differ only in names, shapes and numbers: the first, and where the others are.

    As `pyquant-circle check` prints them.
    """
    groups: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        kind = (fault.code, _OWN.sub("", fault.where), _OWN.sub("", fault.message))
        groups.setdefault(kind, []).append(fault)
    lines = []
    for first, *others in groups.values():
        places = ", ".join([fault.where for fault in others[:_NAMED]] + ["..."] * (len(others) > _NAMED))
        lines.append(f"{first} (and {len(others)} more like it: {places})" if others else str(first))
    return lines


def codes() -> Mapping[str, str]:
    """Every fault code and what it means."""
    return MappingProxyType(dict(native.codes()))
