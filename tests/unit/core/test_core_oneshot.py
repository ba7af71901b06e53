# SPDX-License-Identifier: Apache-2.0
"""quantize(): the same bits as the steps by hand; which batches a step gets, what it says, what it refuses."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyBlock
from torch import Tensor

import pyquant
from pyquant import Policy, Recipe, Step, oneshot
from pyquant.decision import Decision
from pyquant.errors import CalibrationError, CheckpointError, InputError, PolicyError
from pyquant.wrap import Phase, QModule


def test_quantize_is_prepare_calibrate_convert(block: ToyBlock, xs: list[Tensor], converted: QModule) -> None:
    q = pyquant.quantize(block, xs, recipe="w8a8-fast", progress=False)
    assert q.phase is Phase.QUANTIZED
    assert torch.equal(q(xs[0]), converted(xs[0]))
    assert q.state.recipe == Recipe.preset("w8a8-fast")
    assert q.state.notes == []


def test_a_policy_and_a_generator_go_as_they_are(block: ToyBlock, xs: list[Tensor], converted: QModule) -> None:
    q = pyquant.quantize(block, (x for x in xs), recipe=Policy.preset("w8a8"), progress=False)
    assert torch.equal(q(xs[0]), converted(xs[0]))


class Loader:
    """A data loader: it can be read again, has a length, and no index."""

    def __init__(self, xs: list[Tensor]) -> None:
        self.xs, self.passes = xs, 0

    def __len__(self) -> int:
        return len(self.xs)

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return iter(self.xs)


class Endless(Loader):
    __len__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield from self.xs


@pytest.mark.parametrize(("kind", "wanted"), [(list, (0, 2)), (Loader, (0, 2)), (Endless, (0, 1))])
def test_a_step_reads_as_many_samples_as_it_says(
    block: ToyBlock, xs: list[Tensor], kind: Any, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Endless:
        monkeypatch.delattr(Endless, "__len__")
        monkeypatch.delattr(Loader, "__len__")
    recipe = Recipe("few", Policy.preset("w8a8"), (Step("calibrate", {"samples": 2}),))
    q = pyquant.quantize(block, kind(xs), recipe=recipe, progress=False)
    by_hand = pyquant.quantize(block, [xs[i] for i in wanted], recipe="w8a8-fast", progress=False)
    assert torch.equal(q(xs[0]), by_hand(xs[0]))


def test_an_iterator_is_kept_for_the_steps_and_that_is_said(block: ToyBlock, xs: list[Tensor], caplog) -> None:
    recipe = Recipe("few", Policy.preset("w8a8"), (Step("calibrate", {"samples": 2}),))
    said: list[str] = []
    pyquant.quantize(block, iter(xs), recipe=recipe, progress=False, log=said.append)
    assert said == ["the batches are an iterator, which can be read once: all 4 are kept in memory for the steps"]
    with caplog.at_level(logging.WARNING, "pyquant.oneshot"):
        pyquant.quantize(block, iter(xs), recipe=recipe, progress=False)
    assert "all 4 are kept in memory" in caplog.text


def test_what_cannot_be_is_refused(block: ToyBlock, xs: list[Tensor]) -> None:
    with pytest.raises(CalibrationError, match=r"got one Tensor; pass \[batch\]"):
        pyquant.quantize(block, xs[0], recipe="w8a8-fast")
    with pytest.raises(PolicyError, match="recipe 'w9' does not exist"):
        pyquant.quantize(block, xs, recipe="w9")
    with pytest.raises(InputError, match=r"cannot be a folder .*; name another place"):
        pyquant.quantize(block, xs, recipe="w4a16", resume=__file__)
    q = pyquant.prepare(block, Policy.preset("w8a8"))
    with pytest.raises(PolicyError, match="prepared with policy 'w8a8', and recipe 'w8a16' has another"):
        oneshot.run(q, xs, Recipe.preset("w8a16"))


def test_each_step_is_entered_by_name(block: ToyBlock, xs: list[Tensor]) -> None:
    names: list[str] = []

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        names.append(name)
        yield

    recipe = Recipe.preset("w8a8-fast")
    oneshot.run(pyquant.prepare(block, recipe.policy), xs, recipe, progress=False, step=step)
    assert names == ["calibrate", "convert"]


def test_recipe_log_and_notes_are_saved_and_loaded(block: ToyBlock, xs: list[Tensor], tmp_path: Path) -> None:
    steps = (Step("rotate", {"where_possible": True}), Step("calibrate", {"samples": 2}))
    recipe = Recipe("few", Policy.preset("w8a8"), steps, evidence="a test | of pipes")
    q = pyquant.quantize(block, xs, recipe=recipe, progress=False)
    q.state.log = [Decision("up:weight", "gptq", 8, 0.25, 12, 0.5), Decision("down:weight", "gptq", 8, None)]
    pyquant.save_quantized(q, tmp_path / "q")
    for other in (pyquant.load_quantized(tmp_path / "q", ToyBlock()), copy.deepcopy(q)):
        assert other.state.recipe == recipe
        assert other.state.log == q.state.log
        assert other.state.notes == q.state.notes
        assert len(other.state.notes) == 1
    card = (tmp_path / "q" / "README.md").read_text()
    rows = (
        "| steps | rotate(where_possible=True), calibrate(samples=2) |",
        "| decided | 2 by gptq (quantization_log.csv) |",
        r"| evidence | a test \| of pipes |",
        "| notes | rotate left out: rotate found nothing",
    )
    for row in rows:
        assert row in card
    q.state.log.clear()
    pyquant.save_quantized(q, tmp_path / "q")
    assert not (tmp_path / "q" / "quantization_log.csv").exists(), "the log of the former model"
    assert pyquant.load_quantized(tmp_path / "q", ToyBlock()).state.log == []


def test_a_recipe_of_another_release_does_not_keep_a_model_from_loading(
    block: ToyBlock, xs: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    q = pyquant.quantize(block, xs, recipe="w8a8-fast", progress=False)
    pyquant.save_quantized(q, tmp_path / "q")
    index = json.loads((tmp_path / "q" / "quantization.json").read_text())
    index["recipe"]["steps"] = [{"newer": {}}]
    (tmp_path / "q" / "quantization.json").write_text(json.dumps(index))
    loaded = pyquant.load_quantized(tmp_path / "q", ToyBlock())
    assert torch.equal(loaded(xs[0]), q(xs[0]))
    assert loaded.state.recipe is None
    assert "does not know its recipe, and leaves it out (steps[0]: 'newer' is not known here" in caplog.text
    index["recipe"] = []
    (tmp_path / "q" / "quantization.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'recipe' is a list, expected an object"):
        pyquant.load_quantized(tmp_path / "q", ToyBlock())


def test_a_damaged_log_is_named(block: ToyBlock, xs: list[Tensor], tmp_path: Path) -> None:
    q = pyquant.quantize(block, xs, recipe="w8a8-fast", progress=False)
    q.state.log = [Decision("up:weight", "gptq", 8)]
    pyquant.save_quantized(q, tmp_path / "q")
    (tmp_path / "q" / "quantization_log.csv").write_text("path\n")
    with pytest.raises(CheckpointError, match=r"is corrupt: the checksum of 'quantization_log.csv'"):
        pyquant.load_quantized(tmp_path / "q", ToyBlock())
