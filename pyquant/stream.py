# SPDX-License-Identifier: Apache-2.0
"""Stream: how a tree that is larger than memory keeps its weights, in mapped files of which few pages are in memory.

It owns files for weights that are not those of a checkpoint (edited, converted), whether those of the checkpoint are as
they were, and when pages go back. Weights are tensors like any others, so nothing else knows where they lie. What the
system is told is pages.py.
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
from pyquant.errors import CheckpointError, InputError

__all__ = ["Stream", "watching"]

_SMALL = 1 << 16  # bytes; a smaller tensor stays in memory
_GB = 10**9


@dataclass(frozen=True)
class _Stamp:
    """What shows that a file is the one that was mapped, unchanged."""

    inode: int
    size: int
    time: int

    @classmethod
    def of(cls, path: Path, inode: int) -> _Stamp:
        """That of the file `path`, which was mapped as `inode`."""
        try:
            found = path.stat()
        except OSError:
            return cls(inode, -1, -1)
        return cls(inode, found.st_size, found.st_mtime_ns)

    def fault(self, path: Path) -> str:
        """What became of the file, in words; "" for nothing."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return "was deleted"
        except OSError as error:
            return f"can no longer be looked at ({error.strerror})"
        if found.st_ino != self.inode:
            return "was replaced by another file"
        if found.st_size != self.size:
            return f"has {found.st_size} bytes, and had {self.size}"
        return "" if found.st_mtime_ns == self.time else "was written to"


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
    _files: dict[Path, _Stamp] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        if value.numel() * dtype.itemsize < _SMALL:
            return value.to("cpu", dtype, copy=True).contiguous()
        return self.write(shape, dtype, (ops.rows_of(value, rows) for rows in ops.row_slices(shape)))

    def write(self, shape: tuple[int, ...], dtype: torch.dtype, pieces: Iterable[Tensor]) -> Tensor:
        """A tensor in a file, of `shape` and `dtype`: some rows of it after the other, as `pieces` gives them.

        Raises InputError where the folder has too little space.
        """
        size = torch.Size(shape).numel() * dtype.itemsize
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
                for rows in pieces:
                    piece = rows.to("cpu", dtype).contiguous().reshape(-1)
                    file.write(piece.view(torch.uint8).numpy().data)
                assert file.tell() == size, f"the pieces have {file.tell()} bytes, expected {size}"
            kept: Tensor = torch.from_file(name, shared=False, size=torch.Size(shape).numel(), dtype=dtype)
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

    def guard(self, model: nn.Module) -> None:
        """From now on `check` knows the files that the parameters and buffers of `model` are mapped from.

        Raises CheckpointError where one is no longer the file that was mapped.
        """
        for path, inode in pages.files_of([*model.parameters(), *model.buffers()]).items():
            self._files.setdefault(path, _Stamp.of(path, inode))
        self.check()

    def check(self) -> None:
        """Raise CheckpointError for a file of weights that was edited, truncated, replaced or deleted since `guard`.

        It costs a look at each file's size, time and inode, and comes before weights are read: what lies beyond the end
        of a file that was cut ends the process (SIGBUS).
        """
        for path, stamp in self._files.items():
            if why := stamp.fault(path):
                raise CheckpointError(
                    f"{str(path)!r} {why}, and weights of the streamed model are read from it: it must stay as it was "
                    "when the model was loaded, until all is saved; put it back, and start again from loading the model"
                )

    def touch(self, *tensors: Tensor) -> None:
        """These are about to be read, or just were: where they and those before are more than may stay, the pages of
        those before go back to their files. Raises CheckpointError as `check` does."""
        self.check()
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

    def check(*_: Any) -> None:
        stream.check()

    own = [module for module in tree.modules() if any(p is not None for p in module._parameters.values())]
    handles = [module.register_forward_hook(touch) for module in own]
    handles += [module.register_forward_pre_hook(check) for module in own]
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
