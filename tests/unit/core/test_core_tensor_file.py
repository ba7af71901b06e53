# SPDX-License-Identifier: Apache-2.0
"""A .safetensors file that is written some rows at a time: the bytes of safetensors' own writer."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyquant import tensor_file
from pyquant.ops import pieces

TYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16,
    torch.float16, torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64,
    torch.int64, torch.uint64,
]  # fmt: skip


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}], ids=["metadata", "none"])
def test_bytes_are_those_of_safetensors(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    for place, dtype in enumerate(TYPES):
        tensors[f'b{place}.ü"\n'] = torch.arange(6).reshape(3, 2).to(dtype)
        tensors[f"a{place}"] = torch.ones(()).to(dtype)
        tensors[f"empty{place}"] = torch.zeros(0, 3).to(dtype)
    save_file(tensors, tmp_path / "theirs", metadata=metadata or None)
    tensor_file.save(tmp_path / "ours", {name: tensor_file.whole(t) for name, t in tensors.items()}, metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_tensor_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 50)
    x = torch.randn(40, 12).t()  # not contiguous
    entry = tensor_file.whole(x)
    assert len(list(entry.pieces())) == 12
    tensor_file.save(tmp_path / "ours", {"x": entry}, {})
    save_file({"x": x.contiguous()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_type_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor 'x' is torch.complex128, which a .safetensors file cannot hold"):
        tensor_file.save(tmp_path / "x", {"x": tensor_file.whole(torch.ones(2, dtype=torch.complex128))}, {})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("small", [0, 5, 3000])
@pytest.mark.parametrize("large", [0, 1, 7])
def test_the_checksum_is_that_of_the_file(tmp_path: Path, small: int, large: int) -> None:
    """Small tensors are written together, large ones behind the caller; the order and the checksum are the file's."""
    gen = torch.Generator().manual_seed(small + large)
    tensors = {f"{i % 10}small{i}": torch.randn(7, generator=gen) for i in range(small)}
    tensors |= {f"{i}large": torch.randn(3, 300_001, generator=gen) for i in range(large)}
    checksum = tensor_file.save(tmp_path / "ours", {name: tensor_file.whole(t) for name, t in tensors.items()}, {})
    save_file(tensors, tmp_path / "theirs")
    data = (tmp_path / "ours").read_bytes()
    assert data == (tmp_path / "theirs").read_bytes()
    assert checksum == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("count", [1, 40])
def test_a_full_disk_is_an_error(count: int) -> None:
    entries = {f"x{i}": tensor_file.whole(torch.zeros(1 << 18)) for i in range(count)}
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left on device"):
        tensor_file.save(Path("/dev/full"), entries, {})
    assert threading.active_count() == before


def test_an_early_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk tells of a failed write once: what the sync in between was told must not be lost."""
    told = iter([OSError(5, "Input/output error")])

    def once(handle: int) -> None:
        if (error := next(told, None)) is not None:
            raise error

    monkeypatch.setattr(os, "fsync", once)
    monkeypatch.setattr(tensor_file, "_EARLY", 1 << 20)
    before = threading.active_count()
    with pytest.raises(OSError, match="Input/output error"):
        tensor_file.save(tmp_path / "x", {"x": tensor_file.whole(torch.zeros(1 << 20))}, {})
    assert threading.active_count() == before


def test_a_large_file_is_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], os.fsync

    def recorded(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(tensor_file, "_EARLY", 1 << 20)
    tensors = {f"x{i}": torch.full((1 << 19,), float(i)) for i in range(4)}
    tensor_file.save(tmp_path / "x", {name: tensor_file.whole(t) for name, t in tensors.items()}, {})
    assert sizes
    assert min(sizes) >= 1 << 20
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "x").items())


@pytest.mark.parametrize("pad", [0, 3], ids=["aligned", "odd"])
def test_mapped_tensors_are_those_of_safetensors(tmp_path: Path, pad: int) -> None:
    """Also of a writer that does not align what follows the header."""
    tensors: dict[str, Tensor] = {}
    for place, dtype in enumerate(TYPES):
        tensors[f'b{place}.ü"'] = torch.arange(6).reshape(3, 2).to(dtype)
        tensors[f"a{place}"] = torch.ones(()).to(dtype)
        tensors[f"empty{place}"] = torch.zeros(0, 3).to(dtype)
    path = tmp_path / "x"
    save_file(tensors, path, metadata={"format": "pt"})
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", size + pad) + data[8 : 8 + size] + b" " * pad + data[8 + size :])
    file, theirs = tensor_file.Mapped(path), load_file(path)
    assert file.names() == set(theirs)
    for name, value in theirs.items():
        assert file.form(name) == (value.dtype, tuple(value.shape))
        ours = file.tensor(name)
        assert (ours.dtype, ours.shape) == (value.dtype, value.shape)
        assert ours.contiguous().reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()


def test_what_safetensors_refuses_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "x"
    table = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}).encode()
    for data in (b"", b"no header", struct.pack("<Q", 1 << 40), struct.pack("<Q", len(table)) + table + bytes(16)):
        path.write_bytes(data)
        with pytest.raises(SafetensorError):
            tensor_file.Mapped(path)
    with pytest.raises(OSError, match="No such file"):
        tensor_file.Mapped(tmp_path / "none")


def test_an_error_of_a_piece_ends_the_writing(tmp_path: Path) -> None:
    def pieces_() -> Iterator[Tensor]:
        yield torch.zeros(1 << 18)
        raise RuntimeError("no more")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no more"):
        tensor_file.save(tmp_path / "x", {"x": tensor_file.Entry(torch.float32, (1 << 19,), pieces_)}, {})
    assert threading.active_count() == before
