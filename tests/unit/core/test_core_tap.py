# SPDX-License-Identifier: Apache-2.0
"""Site.tap and Site.quantize: watching and replacing what a site passes, and its grid in any phase."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import Policy, wrap
from pyquant.errors import PhaseError
from pyquant.site import Role, Site
from pyquant.wrap import Phase, QModule


class Record:
    """A tap that keeps what it saw, and returns what `replace` makes of it."""

    def __init__(self, replace: Any = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.replace = replace

    def __call__(self, site: Site, x: Tensor, out: Tensor, **rest: Any) -> Tensor | None:
        self.seen.append({"site": site, "x": x, "out": out, **rest})
        return None if self.replace is None else self.replace(out)


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 24).reshape(3, 8)


@pytest.fixture
def q(x: Tensor) -> QModule:
    torch.manual_seed(0)
    tree = pyquant.prepare(nn.Linear(8, 4), Policy.preset("w8a8"))
    pyquant.calibrate(tree, [x], progress=False)
    pyquant.convert(tree)
    return tree


def test_a_tap_sees_value_and_grid(q: QModule, x: Tensor) -> None:
    site, record, plain = q.site("act_in"), Record(), q(x)
    with site.tap(record):
        assert torch.equal(q(x, clip_in=(-0.5, None)), q(x, clip_in=(-0.5, None)))
        assert torch.equal(q(x), plain)
    q(x)
    assert len(record.seen) == 3
    first, last = record.seen[0], record.seen[2]
    assert first["clip"] == (-0.5, None)
    assert (last["site"], last["observed"], last["constant"]) == (site, None, False)
    assert last["x"] is x
    assert torch.equal(last["out"], site.quantize(x))
    assert site._taps == ()


def test_a_tap_replaces(q: QModule, x: Tensor) -> None:
    with q.site("act_out").tap(Record(lambda out: out * 0)):
        assert torch.equal(q(x), torch.zeros(3, 4))
    assert q(x).abs().max() > 0


def test_constants_pass_taps_from_the_cache_too(q: QModule, x: Tensor) -> None:
    plain = q(x)
    record = Record(lambda out: out * 2)
    with q.site("weight").tap(record):
        doubled = q(x)
    assert [seen["constant"] for seen in record.seen] == [True]
    assert record.seen[0]["x"] is q.weight
    assert torch.equal(record.seen[0]["out"], q.site("weight").quantize(q.weight, constant=True))
    assert not torch.equal(doubled, plain)
    assert torch.equal(q(x), plain)  # what a tap returned is in no cache


def test_taps_nest_and_each_goes_alone(q: QModule, x: Tensor) -> None:
    site = q.site("act_out")
    plus, twice, other = (Record(lambda out, f=f: f(out)) for f in (lambda t: t + 1, lambda t: t * 2, lambda t: t))
    plain = q(x)
    one, two, again = site.tap(plus), site.tap(twice), site.tap(plus)
    assert torch.equal(q(x), (plain + 1) * 2 + 1)
    one.remove()
    one.remove()
    assert torch.equal(q(x), plain * 2 + 1)
    with site.tap(other):
        two.remove()
        assert torch.equal(q(x), plain + 1)
    assert torch.equal(q(x), plain + 1)
    again.remove()
    assert torch.equal(q(x), plain)
    assert len(twice.seen) == 2


def test_a_tap_may_remove_itself_and_goes_when_the_block_fails(q: QModule, x: Tensor) -> None:
    site, handles = q.site("act_in"), []
    handles.append(site.tap(lambda *_, **__: handles[0].remove()))
    q(x)
    assert site._taps == ()
    with pytest.raises(RuntimeError, match="inside"), site.tap(Record()):
        raise RuntimeError("inside")
    assert site._taps == ()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"])
def test_a_copy_has_no_taps(q: QModule, x: Tensor, how: Any) -> None:
    with q.site("act_in").tap(lambda *_, **__: torch.zeros(3, 8)):
        twin = how(q)
        assert not torch.equal(q(x), twin(x))
    assert torch.equal(q(x), twin(x))


def test_calibrating_taps_see_what_is_observed(x: Tensor) -> None:
    q, record = pyquant.prepare(nn.Linear(8, 4), Policy.preset("w8a8")), Record()
    with q.site("act_in").tap(record):
        pyquant.calibrate(q, [x, x * 3], progress=False)
    assert [float(seen["x"].max()) for seen in record.seen] == [1.0, 3.0]
    assert all(seen["out"] is seen["x"] for seen in record.seen)
    assert float(q.site("act_in").observer.range()[1]) == 3.0


@pytest.mark.parametrize("phase", [Phase.FLOAT, Phase.QUANTIZED], ids=lambda p: p.name)
def test_quantize_is_the_grid_in_every_phase(q: QModule, x: Tensor, phase: Phase) -> None:
    site, weight = q.site("act_in"), q.site("weight")
    wide = x * 9
    want, kernel = site(wide, clip=(-0.25, 0.5)), weight.constant(q.weight)
    with wrap.phase(q, phase):
        assert torch.equal(site.quantize(wide, clip=(-0.25, 0.5)), want)
        assert torch.equal(weight.quantize(q.weight, constant=True), kernel)


def test_quantize_of_a_site_without_a_grid() -> None:
    x = torch.tensor([-2.0, 2.0])
    assert Site("m:x", Role.ACTIVATION, None).quantize(x) is x
    q = pyquant.prepare(nn.Linear(2, 2), Policy.preset("w8a8"))
    with pytest.raises(PhaseError, match=r"site ':act_in' has no grid yet; run pyquant\.calibrate and pyquant.convert"):
        q.site("act_in").quantize(x)
