# SPDX-License-Identifier: Apache-2.0
"""Weight: the one owner of a weight; what is decided stays, the float model never changes, a tie is cut here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel
from torch import Tensor

import pyquant
from pyquant import Policy, ops
from pyquant.errors import InputError, PhaseError, PolicyError
from pyquant.qparams import QParams
from pyquant.spec import INT4, PerAxis, QuantSpec
from pyquant.weight import Weight, weights

SPEC = QuantSpec(INT4, symmetric=True, granularity=PerAxis(0))


def data() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def grid(rows: int) -> QParams:
    scale = 0.03 + 0.01 * torch.arange(rows)
    return QParams(SPEC, scale, torch.zeros(rows, dtype=torch.int32))


def integers(weight: Weight) -> Tensor:
    return torch.randint(-7, 8, weight.value.shape, generator=torch.Generator().manual_seed(1))


def prepared(model: Any) -> Any:
    torch.manual_seed(0)
    return pyquant.prepare(model, Policy.preset("w8a16"))


def of(q: Any, path: str) -> Weight:
    return next(weight for weight in weights(q) if weight.path == path)


def test_integers_that_were_decided_are_those_of_the_file_and_of_the_saved_folder(tmp_path: Path) -> None:
    block = ToyBlock()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    q = prepared(block)
    weight = of(q, "up:weight")
    chosen = integers(weight)
    weight.decide(grid(12), "the test", chosen)
    assert torch.equal(weight.value, chosen * grid(12).scale[:, None])
    pyquant.calibrate(q, [(data(),)], progress=False)
    pyquant.convert(q)
    assert weight.how == "the test"
    assert torch.equal(weight.integers.long(), chosen)
    assert torch.equal(q.up.const("weight", q.up.weight), weight.value)
    pyquant.save_quantized(q, tmp_path / "saved")
    loaded: Any = pyquant.load_quantized(tmp_path / "saved", ToyBlock())
    assert torch.equal(of(loaded, "up:weight").integers.long(), chosen)
    assert torch.equal(loaded(data()), q(data()))
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_calibration_sees_the_decided_values() -> None:
    q = prepared(ToyBlock())
    weight = of(q, "down:weight")
    weight.decide(grid(8), "the test", torch.full_like(weight.value, 7))
    pyquant.calibrate(q, [(data(),)], progress=False)
    largest = 7 * grid(8).scale.max()  # softmax sums to 1
    pyquant.convert(q)
    assert float(q.down.site("act_out").scale) * 32767 == pytest.approx(float(largest), rel=1e-4)


def test_a_grid_alone_takes_the_nearest_integers() -> None:
    q = prepared(ToyBlock())
    weight = of(q, "up:weight")
    before, qparams = weight.value.clone(), grid(12)
    weight.decide(qparams, "the test")
    expected = ops.fake_quantize(before, qparams.scale, qparams.zero_point, 0, 0, -7, 7)
    assert torch.equal(weight.value, expected)
    assert not weight.open


def test_a_replaced_value_is_this_trees_alone_and_unties() -> None:
    model = ToyModel()
    table = model.embed.weight.detach().clone()
    q = prepared(model)
    assert q.head.weight is q.embed.weight
    of(q, "head:weight").replace(table * 2)
    assert torch.equal(q.head.weight, table * 2)
    assert torch.equal(q.embed.weight, table)
    assert torch.equal(model.head.weight, table)
    pyquant.calibrate(q, [torch.arange(10)[None]], progress=False)
    pyquant.convert(q)
    assert float(q.head.site("weight").scale.max() / q.embed.site("weight").scale) == pytest.approx(2, rel=1e-5)


def test_deciding_twice_too_late_or_off_the_grid_is_said() -> None:
    q = prepared(ToyBlock())
    weight = of(q, "up:weight")
    with pytest.raises(PolicyError, match=r"integers in \[.*8\] are not on the grid"):
        weight.decide(grid(12), "x", torch.full_like(weight.value, 8))
    with pytest.raises(InputError, match=r"up:weight.*\(12, 8\) got integers of \(8, 12\)"):
        weight.decide(grid(12), "x", integers(weight).T)
    assert weight.open
    weight.decide(grid(12), "once")
    with pytest.raises(PhaseError, match=r"'up:weight' is decided already \(once\)"):
        weight.decide(grid(12), "twice")
    with pytest.raises(PhaseError, match=r"decided \(once\), and stays as it is"):
        weight.replace(weight.value)
    pyquant.calibrate(q, [(data(),)], progress=False)
    pyquant.convert(q)
    with pytest.raises(PhaseError, match="converted"):
        of(q, "down:weight").decide(grid(8), "late")


def test_watching_shows_the_rows_that_are_multiplied() -> None:
    q = prepared(ToyBlock())
    seen: list[Tensor] = []
    x = torch.randn(2, 3, 8)
    with pyquant.wrap.phase(q, pyquant.wrap.Phase.FLOAT):
        handle = of(q, "up:weight").watch(lambda index, rows: seen.append(rows))
        q(x)
        handle.remove()
        q(x)
    assert len(seen) == 1
    assert torch.equal(seen[0], q.norm(x).reshape(-1, 8))
