# SPDX-License-Identifier: Apache-2.0
"""How far a step is: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
import torch

import pyquant
from pyquant import Policy, progress
from pyquant.models.llama import example
from pyquant.progress import Lines
from pyquant.stream import Stream


def lines(file: io.StringIO) -> list[str]:
    return [re.sub(r", peak .*", "", line) for line in file.getvalue().splitlines()]


def test_first_last_and_one_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, file = [0.0], io.StringIO()
    step: Lines[int] = Lines(range(10), "gptq", "block", file=file, clock=lambda: now[0])
    for _ in step:
        now[0] += 2.0
    assert lines(file) == [
        "gptq: block 1 of 10, 2 s, 18 s left",
        "gptq: block 4 of 10, 8 s, 12 s left",
        "gptq: block 7 of 10, 14 s, 6 s left",
        "gptq: block 10 of 10, 20 s",
    ]


def test_counts_without_an_end_and_again() -> None:
    now, file = [0.0], io.StringIO()
    with Lines[int](iter([7, 8]), "read", "batch", file=file, clock=lambda: now[0]) as step:
        assert list(step) == [7, 8]
        step.set_description("later")
        step.reset(total=1)
        now[0] += 3.0
        step.update()
    assert lines(file) == ["read: batch 1, 0 s", "later: batch 1 of 1, 3 s"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_the_process() -> None:
    before = float(progress.peak().split()[1])
    held = torch.ones(64 << 20)  # 256 MiB
    assert float(progress.peak().split()[1]) >= max(before, held.numel() * 4 / (1 << 30))


def test_a_terminal_gets_a_bar_and_a_pipe_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress.bar([1, 2], desc="a", unit="batch")) == [1, 2]
    assert list(progress.bar([1, 2], desc="b", unit="batch", show=False)) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.bar([1, 2], desc="c", unit="batch", show=True)) == [1, 2]
    err = capsys.readouterr().err
    assert "\r" in err
    assert "2/2" in err
    if sys.platform == "linux":
        assert re.search(r"peak [0-9]+\.[0-9]{2} GiB", err)


def test_steps_of_a_streamed_tree(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stream = Stream(tmp_path)
    data = [{"input_ids": torch.arange(9)[None]}, {"input_ids": torch.arange(7, 20)[None]}]
    q = pyquant.prepare(example.tiny_model(), Policy.preset("w4a16"), stream=stream)
    pyquant.algorithms.gptq(q, data, memory=1, progress=True)
    pyquant.calibrate(q, data, progress=True)
    count = len(q.get_submodule("model.layers"))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert f"gptq: inputs of blocks: batch {len(data)} of {len(data)}, " in said
    assert f"gptq: block {count + 1} of {count + 1}, " in said
    assert f"calibrate: block {count} of {count}, " in said
