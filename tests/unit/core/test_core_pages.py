# SPDX-License-Identifier: Apache-2.0
"""Pages of tensors in files that are given back without losing a value."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyquant import pages
from pyquant.cli import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SIZE = 64 << 20  # bytes of a test's large tensor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(SIZE // 8), "b": torch.ones(3, 5)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def mapped(file: Path) -> Tensor:
    with safe_open(file, framework="pt") as content:
        value: Tensor = content.get_tensor("a")
    return value


def resident() -> int:
    return memory._number(memory._STATUS, "VmRSS")


def test_pages_that_a_file_has_are_given_back(file: Path) -> None:
    value = mapped(file)
    total = int(value.sum())
    before = resident()
    assert pages.release([value]) >= SIZE
    assert resident() <= before - SIZE * 0.9
    assert int(value.sum()) == total


def test_changed_pages_stay(file: Path) -> None:
    value = mapped(file)
    value[5] = -1
    assert pages.release([value]) == 0
    assert value[:7].tolist() == [0, 1, 2, 3, 4, -1, 6]


def test_changed_pages_that_were_swapped_out_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are no longer among the pages in memory ("Anonymous")."""
    mappings = (
        ("1000-2000 rw-p 00000000 08:01 7 /w/a.safetensors", 0, 0),
        ("2000-3000 rw-p 00001000 08:01 7 /w/a.safetensors", 0, 4),
        ("3000-4000 rw-p 00002000 08:01 7 /w/a.safetensors", 4, 0),
        ("4000-5000 rw-p 00000000 00:00 0 [heap]", 0, 4),
        ("5000-6000 r--s 00000000 08:01 9 /w/b.safetensors", 0, 0),
    )
    lines = [f"{m}\nRss: 4 kB\nAnonymous: {kept} kB\nSwap: {swapped} kB\n" for m, kept, swapped in mappings]
    (tmp_path / "smaps").write_text("".join(lines))
    monkeypatch.setattr(pages, "_SMAPS", tmp_path / "smaps")
    assert pages._unchanged_files() == [(0x1000, 0x2000), (0x5000, 0x6000)]


def test_tensors_of_no_file_stay() -> None:
    value = torch.arange(SIZE // 8)
    assert pages.release([value]) == 0
    assert int(value[-1]) == SIZE // 8 - 1
