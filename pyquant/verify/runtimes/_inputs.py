# SPDX-License-Identifier: Apache-2.0
"""What a caller gives to a runtime: a program as bytes, and the inputs in the order of the graph.

It owns names, counts and whether a shape fits. Types are checked by each runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyquant.errors import InputError
from pyquant.exporter.program import CircleProgram

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = Mapping[str, Any] | Sequence[Any]
#: What a runtime runs: an exported program, the path of a file, or a file's bytes.
Program = CircleProgram | str | os.PathLike[str] | bytes


def ordered(names: Sequence[str], inputs: Inputs) -> list[Any]:
    """`inputs` by name or in order, as `names` has them. Raises InputError for other names or another number."""
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise InputError(f"the graph's inputs are {list(names)}, got {list(inputs)}")
        return [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise InputError(f"the graph has {len(names)} inputs {list(names)}, got {len(inputs)} values")
    return list(inputs)


def program_bytes(program: Program) -> bytes:
    """The bytes of a CircleProgram, of the file at a path, or the bytes themselves."""
    if isinstance(program, bytes):
        return program
    if isinstance(program, str | os.PathLike):
        return Path(program).read_bytes()
    return program.to_bytes()


def fits(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a tensor declared with `sizes`, where -1 is any size, may have this shape."""
    return len(shape) == len(sizes) and all(size in (-1, seen) for size, seen in zip(sizes, shape, strict=True))
