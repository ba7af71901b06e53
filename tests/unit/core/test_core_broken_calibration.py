# SPDX-License-Identifier: Apache-2.0
"""A calibration that broke off, and trees that two calibrate at once: remembered, and refused with the next step."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from core_toys import ToyBlock
from torch import Tensor, nn

import pyquant
from pyquant import Policy, wrap
from pyquant.errors import CalibrationError, PhaseError
from pyquant.wrap import Phase, QModule

W8A8 = Policy.preset("w8a8")


def calibrated(block: ToyBlock, xs: list[Tensor]) -> QModule:
    q = pyquant.prepare(block, W8A8)
    pyquant.calibrate(q, xs, progress=False)
    return q


class _Stops(nn.Module):
    """Two linears, and an error between them for a batch of one row."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.up, self.down, self.error = nn.Linear(8, 4), nn.Linear(4, 2), error


class _QuantStops(QModule):
    CHILDREN = ("up", "down")

    def __init__(self, fp: Any, ctx: Any) -> None:
        super().__init__(fp, ctx)
        self.error = fp.error

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if len(x) == 1:
            raise self.error
        return self.down(x)


@pytest.fixture
def stops() -> Iterator[None]:
    wrap.register(_Stops)(_QuantStops)
    yield
    wrap.registry.unregister(_Stops)


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize(
    "error", [ValueError("of\nthe model"), KeyboardInterrupt(), MemoryError("no room")], ids=lambda e: type(e).__name__
)
def test_a_batch_that_failed_half_way_is_remembered(error: BaseException) -> None:
    """On old main convert then passed, with `up` widened by a batch that `down` never saw."""
    q = pyquant.prepare(_Stops(error), W8A8)
    with pytest.raises((CalibrationError, type(error))):
        pyquant.calibrate(q, [torch.randn(3, 8), torch.randn(1, 8) * 100], progress=False)
    message = rf"batch 1 failed with {type(error).__name__}(: (of|no room))?; the ranges are not"
    for tree in (q, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        with pytest.raises(CalibrationError, match=message):
            pyquant.convert(tree)
    assert q.phase is Phase.CALIBRATE
    assert all(site.scale is None for site in q.all_sites())


def test_what_no_site_has_seen_breaks_nothing(block: ToyBlock, xs: list[Tensor]) -> None:
    """A batch of a wrong type or name, no batches at all, and data that fails before its first batch."""
    q = pyquant.prepare(block, W8A8)

    def reader() -> Iterator[Tensor]:
        raise OSError("the disk is gone")
        yield from xs

    with pytest.raises(OSError, match="the disk"):
        pyquant.calibrate(q, reader(), progress=False)
    pyquant.calibrate(q, xs, progress=False)
    for batches in ([7], [{"no_such_argument": xs[0]}], []):
        with pytest.raises(CalibrationError):
            pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    other = calibrated(block, xs)
    pyquant.convert(other)
    assert torch.equal(q(xs[0]), other(xs[0]))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")], ids=["ctrl_c", "reader"])
def test_data_that_ends_too_early_breaks_the_calibration(
    block: ToyBlock, xs: list[Tensor], error: BaseException
) -> None:
    """Ctrl-C lands between two batches as often as within one, and a reader fails there."""
    q = pyquant.prepare(block, W8A8)

    def reader() -> Iterator[Tensor]:
        yield xs[0]
        raise error

    with pytest.raises(type(error)):
        pyquant.calibrate(q, reader(), progress=False)
    with pytest.raises(CalibrationError, match=rf"broken: the batches ended with {type(error).__name__}.* after 1 of"):
        pyquant.convert(q)


@pytest.mark.parametrize("verb", ["calibrate", "convert"])
def test_one_at_a_time(block: ToyBlock, xs: list[Tensor], verb: str) -> None:
    """Another thread is refused at once, in the middle of a batch; the first calibration is not harmed."""
    q, refused = pyquant.prepare(block, W8A8), []
    step = {"calibrate": lambda: pyquant.calibrate(q, xs, progress=False), "convert": lambda: pyquant.convert(q)}[verb]

    def other(*_: Any) -> None:
        for intrude in (step, lambda: wrap.set_phase(q, Phase.FLOAT)):
            try:
                intrude()
            except PhaseError as error:
                refused.append(str(error))

    def hook(*_: Any) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    handle = q.register_forward_pre_hook(hook)
    pyquant.calibrate(q, xs[:1], progress=False)
    handle.remove()
    assert len(refused) == 2
    assert refused[0].startswith(f"{verb} on a tree that is being calibrated or converted: another thread runs")
    assert refused[1].startswith("another thread calibrates or converts this tree")
    pyquant.calibrate(q, xs[1:], progress=False)
    pyquant.convert(q)
    twin = calibrated(block, xs)
    pyquant.convert(twin)
    assert torch.equal(q(xs[0]), twin(xs[0]))


def test_batches_that_convert_the_tree_meanwhile(block: ToyBlock, xs: list[Tensor]) -> None:
    q = pyquant.prepare(block, W8A8)

    def batches() -> Iterator[Tensor]:
        yield xs[0]
        pyquant.convert(q)
        yield xs[1]

    with pytest.raises(PhaseError, match=r"convert on a tree that is being calibrated .*: its own batches call"):
        pyquant.calibrate(q, batches(), progress=False)
    assert not q.state.converted

    def floats() -> Iterator[Tensor]:
        yield xs[0]
        wrap.set_phase(q, Phase.FLOAT)
        yield xs[1]

    with pytest.raises(PhaseError, match=r"batch 1 of calibrate before the tree is ready: .* in phase FLOAT"):
        pyquant.calibrate(q, floats(), progress=False)


def test_copies_and_pickles_are_not_locked(block: ToyBlock, xs: list[Tensor]) -> None:
    q, twins = pyquant.prepare(block, W8A8), []
    handle = q.register_forward_pre_hook(lambda m, a: twins.extend([copy.deepcopy(m), copy.copy(m)][:1]))
    pyquant.calibrate(q, xs[:1], progress=False)
    handle.remove()
    pyquant.calibrate(twins[0], xs, progress=False)
    pyquant.convert(twins[0])
    assert q.phase is Phase.CALIBRATE
