# SPDX-License-Identifier: Apache-2.0
"""Stream: how a tree that is larger than memory keeps its weights, in mapped files of which few pages are in memory.

It owns files for weights that are not those of a checkpoint (edited, converted), and when pages go back. Weights are
tensors like any others, so nothing else knows where they lie. What the system is told is pages.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyquant import ops, pages
from pyquant.errors import InputError

__all__ = ["Stream", "watching"]

_SMALL = 1 << 16  # bytes; a smaller tensor stays in memory
_GB = 10**9


@dataclass(frozen=True)
class Stream:
    """Where a streamed tree keeps weights, and how much of them is in memory.

    folder: for weights that are in no file yet: those that an algorithm edits, and those of another type than the
        checkpoint's. The files have no names once they are written, so nothing is left of them however the process
        ends. None: the system's folder for temporary files; name one on a disk where that is in memory.
    cache_gb: hidden states of calibration data that gptq and tune keep in memory from block to block, in GB; those
        beyond it lie in files of the folder.
    resident_gb: weights that stay in memory after they were used, in GB.

    Values are those of the checkpoint or what was stored, bit for bit, so results do not depend on a stream.
    """

    folder: str | Path | None = None
    cache_gb: float = 2.0
    resident_gb: float = 0.5
    _used: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("cache_gb", "resident_gb"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"Stream({name}={value!r}): expected a number of GB above 0, such as {name}=2.0")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise InputError(f"Stream(folder={str(self.folder)!r}): this is no folder; make it first")

    def keep(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of `value`, in `dtype` where one is given, that lies in a file; a small one is in memory.

        It is written some rows at a time, and is on the CPU. Raises InputError where the folder has too little space.
        """
        dtype, shape, value = dtype or value.dtype, tuple(value.shape), value.detach()
        size = value.numel() * dtype.itemsize
        if size < _SMALL:
            return value.to("cpu", dtype, copy=True).contiguous()
        place = Path(self.folder or tempfile.gettempdir())
        if size > (free := shutil.disk_usage(place).free):
            raise InputError(
                f"a weight of {size / _GB:.2f} GB does not fit the folder {str(place)!r}, where {free / _GB:.2f} GB "
                "are free; name a folder on another disk (Stream(folder=...)), or load the model in the type of its "
                "checkpoint (dtype bfloat16), which needs no copies"
            )
        handle, name = tempfile.mkstemp(prefix=".pyquant-", dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                for rows in ops.row_slices(shape):
                    piece = ops.rows_of(value, rows).to("cpu", dtype).contiguous().reshape(-1)
                    file.write(piece.view(torch.uint8).numpy().data)
            kept: Tensor = torch.from_file(name, shared=False, size=value.numel(), dtype=dtype)
        finally:
            os.unlink(name)  # the mapping keeps what was written
        return kept.reshape(shape)

    def keep_all_(self, model: nn.Module) -> None:
        """Move each parameter and buffer of `model` that is in memory alone to a file; tied ones stay tied."""
        moved: dict[int, Tensor] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, value in tensors.items():
                    if value is None or value.is_meta or _bytes(value) < _SMALL:
                        continue
                    if id(value) not in moved:
                        moved[id(value)] = value if pages.is_mapped(value) else _as(value, self.keep(value))
                    tensors[name] = moved[id(value)]  # type: ignore[assignment]

    def touch(self, *tensors: Tensor) -> None:
        """These are about to be read, or just were: where they and those before are more than may stay, the pages of
        those before go back to their files."""
        new = {value.data_ptr(): value for value in tensors if value.device.type == "cpu"}
        if self._used and sum(map(_bytes, (self._used | new).values())) > self.resident_gb * _GB:
            self.release()
        self._used.update(new)

    def release(self, tensors: Iterable[Tensor] = ()) -> None:
        """The pages of all that was touched, and of `tensors`, go back now. Those of tensors that are in no file, or
        were changed in place, stay."""
        pages.release([*self._used.values(), *tensors])
        self._used.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Stream, (self.folder, self.cache_gb, self.resident_gb)


@contextmanager
def watching(stream: Stream | None, tree: nn.Module) -> Iterator[None]:
    """While the block runs, weights of `tree` count as touched whenever the module that has them ran."""
    if stream is None:
        yield
        return

    def touch(module: nn.Module, *_: Any) -> None:
        stream.touch(*(value for value in module._parameters.values() if value is not None))

    own = [module for module in tree.modules() if any(p is not None for p in module._parameters.values())]
    handles = [module.register_forward_hook(touch) for module in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        stream.release()


def _as(old: Tensor, new: Tensor) -> Tensor:
    """`new` as a parameter where `old` is one."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
