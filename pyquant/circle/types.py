# SPDX-License-Identifier: Apache-2.0
"""The nouns of Circle files: Fault, and the native Model, Tensor and Operator under their public names.

Functions on them are in files.py; the table of operators is in operators.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pyquant.circle._native import native

Model = native.Model
Tensor = native.Tensor
Operator = native.Operator


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a stable code such as E_SCALE_NOT_FINITE, what was seen and expected, and where."""

    code: str
    message: str
    where: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.where, self.message) if part)


def codes() -> Mapping[str, str]:
    """Every fault code and what it means."""
    return MappingProxyType(dict(native.codes()))
