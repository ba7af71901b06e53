# SPDX-License-Identifier: Apache-2.0
"""A .safetensors file written tensor by tensor, each some rows at a time: nothing is held but the piece being written.
And the tensors of one as views of its memory map.

It owns the bytes of the format (https://github.com/huggingface/safetensors): those that safetensors' own `save_file`
writes. Files that appear whole or not at all are files.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pyquant import ops

__all__ = ["Entry", "Mapped", "save", "whole"]

# in the order of safetensors' own enumeration: tensors are sorted by it from the end, then by name
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_BEHIND = 16 << 20  # bytes that may wait to be written
_EARLY = 32 << 20  # bytes after which the disk is asked to take them
_SMALL = 1 << 16  # bytes below which tensors are written together
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type and shape, and what gives its values, in order, in pieces of any shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def whole(value: Tensor) -> Entry:
    """`value` as it is."""
    shape = tuple(value.shape)
    return Entry(value.dtype, shape, lambda: (ops.rows_of(value, rows) for rows in ops.row_slices(shape)))


def save(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    """Write the file, and return its SHA-256 in hexadecimal: pieces are hashed and written by two threads while the
    next ones are made, and a third has the disk take what is written, so that syncing the file finds little left to do.
    Raises OSError when it cannot be written, ValueError for a type that the format does not have.
    """
    for name, entry in entries.items():
        if entry.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} is {entry.dtype}, which a .safetensors file cannot hold")
    order = sorted(entries, key=lambda name: (-_ORDER[entries[name].dtype], name))
    with path.open("wb", buffering=0) as file, _Writer(file) as out:
        out.put(memoryview(_header(entries, order, metadata)))
        for name in order:
            start = out.size
            for piece in entries[name].pieces():
                flat = piece.detach().cpu().contiguous().reshape(-1)
                assert flat.dtype == entries[name].dtype, f"{name}: a piece is {flat.dtype}"
                out.put(flat.view(torch.uint8).numpy().data)
            assert out.size - start == entries[name].bytes, f"{name}: the pieces are not the tensor"
    return out.digest.hexdigest()


class Mapped:
    """The tensors of a file by name. What safetensors' own reader refuses is refused: it looks at the header first.

    Raises SafetensorError for what is no such file, OSError for one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            self._table: dict[str, Any] = json.loads(file.read(size))
            self._start = file.tell()
        self._table.pop("__metadata__", None)
        self._bytes = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8, device="cpu")

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._table)

    def form(self, name: str) -> tuple[torch.dtype | str, tuple[int, ...]]:
        """Type and shape; the type by its name in the file, where torch or this module has none."""
        entry = self._table[name]
        return _TYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"])

    def tensor(self, name: str) -> Tensor:
        """A view of the file, whose memory is given back with the last of them. For a type that `form` knows.

        It takes a quarter of the time of safetensors' own, which matters for hundreds of scales.
        """
        dtype, shape = self.form(name)
        assert isinstance(dtype, torch.dtype)
        start, stop = (self._start + place for place in self._table[name]["data_offsets"])
        part = self._bytes[start:stop]
        if start % dtype.itemsize:
            part = part.clone()
        return part.view(dtype).reshape(shape)


class _Writer:
    """Writes and hashes buffers in order, a few of them behind the caller, who does not change them any more."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0
        self._threads = [ThreadPoolExecutor(1, "pyquant-save") for _ in range(2)]
        self._disk = ThreadPoolExecutor(1, "pyquant-save")
        self._syncing: Future[None] | None = None
        self._unsynced = 0
        self._small = bytearray()  # of tensors that are not worth a task of their own
        self._tasks: deque[tuple[int, list[Future[None]]]] = deque()
        self._behind = 0

    def put(self, data: memoryview) -> None:
        """Take the next bytes. Raises OSError for those of an earlier call that could not be written."""
        self.size += data.nbytes
        if data.nbytes < _SMALL:
            self._small += data
            if len(self._small) < 16 * _SMALL:
                return
        self._flush()
        if data.nbytes >= _SMALL:
            self._start(data)

    def _flush(self) -> None:
        if self._small:
            self._start(memoryview(self._small))
            self._small = bytearray()

    def _start(self, data: memoryview) -> None:
        works = zip(self._threads, (self._write, self.digest.update), strict=True)
        self._tasks.append((data.nbytes, [thread.submit(work, data) for thread, work in works]))
        self._behind += data.nbytes
        while self._behind > _BEHIND:
            self._wait()

    def _wait(self) -> None:
        size, futures = self._tasks.popleft()
        self._behind -= size
        for future in futures:
            future.result()

    def _write(self, data: memoryview) -> None:
        self._unsynced += data.nbytes
        while data.nbytes:
            data = data[self._file.write(data) :]
        if self._unsynced >= _EARLY and (self._syncing is None or self._syncing.done()):
            self._sync_ended()
            self._unsynced, self._syncing = 0, self._disk.submit(os.fsync, self._file.fileno())

    def _sync_ended(self) -> None:
        """Raises OSError where the last early sync met one: the system tells of it once, not again at the end."""
        if self._syncing is not None:
            self._syncing.result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                while self._tasks:
                    self._wait()
                self._sync_ended()
        finally:
            for thread in (*self._threads, self._disk):
                thread.shutdown(cancel_futures=True)


def _header(entries: Mapping[str, Entry], order: Iterable[str], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        entry, start = entries[name], end
        end += entry.bytes
        table[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
