# SPDX-License-Identifier: Apache-2.0
"""Absent: parameters that have a type and a shape and no values in memory, and what reads them when a file is written.

It owns how such a parameter is told from others. When it is read is values.py; where its values are is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pyquant.errors import ExportError

#: rows -> these rows of a parameter on the CPU; all for slice(None)
Read: TypeAlias = Callable[[slice], Tensor]


class Absent:
    """The absent parameters of a tree, for export(..., absent=...).

    A graph of them is traced as of any others: they are tensors on the CPU whose every element is one number.
    touch: called with each other tensor of the model before its values are read (pyquant/stream.py).
    """

    def __init__(self, touch: Callable[[Tensor], None] | None = None) -> None:
        self.touch = touch
        self._reads: dict[int, tuple[Tensor, Read]] = {}  # by the address of the one number, which is kept

    def parameter(self, dtype: torch.dtype, shape: tuple[int, ...], read: Read) -> nn.Parameter:
        """A parameter to put into the tree. `read(rows)` gives its values: all when their bytes are written, the first
        rows before, where another constant has the same size (to find equal ones)."""
        one = torch.zeros((), dtype=dtype, device="cpu")
        self._reads[one.data_ptr()] = one, read
        return nn.Parameter(one.expand(shape), requires_grad=False)

    def of(self, tensor: Tensor) -> Read | None:
        """What reads `tensor`; None for a tensor with values."""
        if tensor.is_meta or tensor.data_ptr() not in self._reads or any(tensor.stride()):
            return None
        return self._reads[tensor.data_ptr()][1]


def require_values(name: str, tensor: Tensor) -> None:
    """Raises ExportError for a tensor on the meta device."""
    if tensor.is_meta:
        raise ExportError(
            f"parameter '{name}' has no values (it is on the meta device); load it, or give the tree an "
            "Absent.parameter(...) in its place and pass export(..., absent=...)"
        )
