# SPDX-License-Identifier: Apache-2.0
"""A .safetensors file written tensor by tensor, each some rows at a time: nothing is held but the piece being written.

It owns the bytes of the format (https://github.com/huggingface/safetensors): those that safetensors' own `save_file`
writes. Files that appear whole or not at all are files.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant import ops

__all__ = ["Entry", "save", "whole"]

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


def save(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Write the file. Raises OSError when it cannot be written, ValueError for a type that the format does not have."""
    for name, entry in entries.items():
        if entry.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} is {entry.dtype}, which a .safetensors file cannot hold")
    order = sorted(entries, key=lambda name: (-_ORDER[entries[name].dtype], name))
    with path.open("wb") as file:
        file.write(_header(entries, order, metadata))
        for name in order:
            start = file.tell()
            for piece in entries[name].pieces():
                flat = piece.detach().cpu().contiguous().reshape(-1)
                assert flat.dtype == entries[name].dtype, f"{name}: a piece is {flat.dtype}"
                file.write(flat.view(torch.uint8).numpy().data)
            assert file.tell() - start == entries[name].bytes, f"{name}: the pieces are not the tensor"


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
