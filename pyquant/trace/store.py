# SPDX-License-Identifier: Apache-2.0
"""The full tensors of a trace, in memory or one safetensors file each on disk.

It owns storing them. Which tensors are kept is capture.py, which value a tensor is record.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyquant import files
from pyquant.trace.errors import TraceError


class TensorStore(Protocol):
    """Stores copies of tensors, and returns a key for each."""

    def put(self, x: Tensor) -> str:
        """Keeps a copy of `x` as it is now; returns its key."""
        ...

    def get(self, key: str) -> Tensor:
        """The tensor of a key, on the CPU; KeyError when there is none."""
        ...


def _copy(x: Tensor) -> Tensor:
    """A dense CPU copy, independent of later in-place changes of `x`."""
    x = x.detach()
    if x.layout != torch.strided:
        x = x.to_dense()
    return x.resolve_conj().resolve_neg().to("cpu", copy=True).contiguous()


class MemoryStore:
    """Tensors in RAM."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def put(self, x: Tensor) -> str:
        key = f"{len(self._tensors):06d}"
        self._tensors[key] = _copy(x)
        return key

    def get(self, key: str) -> Tensor:
        return self._tensors[key]


class DiskStore:
    """Tensors in `folder`, one file each, read on access, so that one at a time is in RAM."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._count = 0

    def put(self, x: Tensor) -> str:
        key = f"{self._count:06d}"
        self.write(key, x)
        self._count += 1
        return key

    def write(self, key: str, x: Tensor) -> None:
        """Keeps a copy of `x` under a key that the caller chooses."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({"tensor": _copy(x)}, self._path(key))

    def get(self, key: str) -> Tensor:
        path = self._path(key)
        if not path.is_file():
            raise KeyError(key)
        if why := files.absent(path):
            raise TraceError(f"{str(path)!r} {why}")
        try:
            return load_file(path)["tensor"]
        except (SafetensorError, OSError) as error:
            raise TraceError(f"{str(path)!r} cannot be read ({error}); copy the trace again") from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
