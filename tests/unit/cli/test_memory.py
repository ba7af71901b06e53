# SPDX-License-Identifier: Apache-2.0
"""Time and memory of steps."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pyquant.cli import memory
from pyquant.interop import weight_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SIZE = 64 << 20  # bytes of a test's large tensor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(SIZE // 8), "b": torch.ones(3, 5)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def resident() -> int:
    return memory._number(memory._STATUS, "VmRSS")


def test_a_step_has_the_memory_of_its_peak() -> None:
    timer = memory.Timer()
    with timer.step("small"):
        before = resident()
    pages = mmap.mmap(-1, SIZE)  # new ones, whatever the process has freed before
    with timer.step("large"):
        torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    assert list(timer.steps) == ["small", "large"]
    assert timer.steps["large"].peak >= before + SIZE * 0.9
    assert timer.peak >= timer.steps["large"].peak
    assert all(step.seconds >= 0 for step in timer.steps.values())


def test_a_step_that_comes_again_adds_up() -> None:
    assert memory.Step(1.5, 10) + memory.Step(2.0, 7) == memory.Step(3.5, 10)
    timer = memory.Timer()
    for _ in range(2):
        with timer.step("again"):
            pass
    assert list(timer.steps) == ["again"]


def test_a_note_for_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    assert weight_files.elements(file.parent) == 0  # no name that transformers looks for
    file.rename(file.with_name("model.safetensors"))
    assert weight_files.elements(file.parent) == SIZE // 8 + 15
    assert memory.note(1000, "float32") is None
    assert memory.note(10**15, "bfloat16") is None
    note = memory.note(10**15, "float32")
    assert note is not None
    assert note.startswith("the weights take 4000000.0 GB in float32, and ")
    assert "--dtype bfloat16" in note
    monkeypatch.setattr(memory, "_MEMINFO", Path("/nowhere"))
    assert memory.note(10**15, "float32") is None
