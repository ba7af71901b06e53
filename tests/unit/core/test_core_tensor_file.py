# SPDX-License-Identifier: Apache-2.0
"""A .safetensors file that is written some rows at a time: the bytes of safetensors' own writer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
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
