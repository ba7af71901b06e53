# SPDX-License-Identifier: Apache-2.0
"""Owns the tests of the level of sites: each number against the arithmetic it stands for.
Leaves the choice of grids to the tests of observers.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant.errors import PhaseError
from pyquant.trace import SiteTrace, TraceError, render_sites, sites
from pyquant.wrap import Phase, QModule, Role, WrapContext


class Scaled(nn.Module):
    """A weight, an activation in the middle, and a branch that no test takes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 0.25]]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight)


@pyquant.register(Scaled)
class QuantScaled(QModule):
    SITES = {"act_in": Role.ACTIVATION, "weight": Role.WEIGHT, "act_out": Role.ACTIVATION, "never": Role.ACTIVATION}

    def __init__(self, fp: Scaled, ctx: WrapContext) -> None:
        super().__init__(fp, ctx)
        self.weight = fp.weight

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = self.q("act_in", x, observed=x if valid is None else x[valid])
        return self.q("act_out", torch.nn.functional.linear(x, self.const("weight", self.weight)))


@pytest.fixture
def q() -> QModule:
    q = pyquant.prepare(Scaled(), pyquant.Policy.preset("w8a8"))
    pyquant.calibrate(q, [torch.tensor([[0.0, 2.55], [1.0, 0.5]])])
    pyquant.convert(q, unused=["*:never"])
    return q


X = torch.tensor([[0.0, 5.10], [1.004, 0.501]])


def test_numbers_are_those_of_the_definition(q: QModule) -> None:
    found = sites(q, X)[":act_in"]
    out = q.site("act_in")(X)
    step = float(q.site("act_in").scale)
    assert step == pytest.approx(0.01)
    assert (found.calls, found.elements, found.nonfinite, found.left_out) == (1, 4, 0, 0)
    assert (found.low, found.high) == (0.0, pytest.approx(5.10))
    assert found.scale == (step, step)
    assert found.zero_point == (0, 0)
    assert found.grid == (0.0, pytest.approx(2.55))
    assert found.clipped == 0.25
    assert found.used == pytest.approx(1.0)
    assert found.max_error == pytest.approx(2.55)
    noise = float((X - out).double().square().sum())
    assert found.sqnr == pytest.approx(10 * math.log10(float(X.double().square().sum()) / noise))


def test_weights_are_sites_too_and_counted_once(q: QModule) -> None:
    found = sites(q, [X, X, X])
    weight = found[":weight"]
    assert (weight.calls, weight.elements) == (1, 4)
    assert weight.scale is not None
    assert weight.scale[0] < weight.scale[1], "per channel: the least and the largest"
    assert (weight.low, weight.high) == (-2.0, 1.0)
    assert weight.clipped == 0
    assert (found.batches, found[":act_in"].calls, found[":act_in"].elements) == (3, 3, 12)


def test_a_site_sees_its_own_input_not_the_float_models(q: QModule) -> None:
    found = sites(q, X)[":act_out"]
    x = q.site("act_in")(X)
    before = torch.nn.functional.linear(x, q.site("weight").constant(q.weight))
    assert (found.low, found.high) == (float(before.min()), float(before.max()))


def test_order_is_that_of_the_values_and_the_unreached_are_last(q: QModule) -> None:
    found = sites(q, X)
    assert [record.path for record in found] == [":act_in", ":weight", ":act_out", ":never"]
    never = found[":never"]
    assert (never.calls, never.scale, never.sqnr, never.used) == (0, None, None, None)


def test_values_that_are_meant_to_saturate_are_left_out(q: QModule) -> None:
    x = torch.tensor([[0.5, 1.0], [-1e9, 7.0]])
    q(x, valid=torch.tensor([True, False]))
    found = sites(q, {"x": x, "valid": torch.tensor([True, False])})[":act_in"]
    assert (found.elements, found.left_out, found.clipped) == (2, 2, 0)
    assert (found.low, found.high) == (0.5, 1.0)


def test_nan_is_counted_and_left_out(q: QModule) -> None:
    found = sites(q, torch.tensor([[math.nan, 1.0]]))[":act_in"]
    assert (found.elements, found.nonfinite) == (1, 1)
    assert found.sqnr is not None
    assert not math.isnan(found.sqnr)


def test_nothing_is_left_behind(q: QModule) -> None:
    expected = q(X)
    sites(q, X)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sites(q, torch.ones(1, 3))
    for site in q.all_sites():
        assert not site._forward_hooks
        assert "constant" not in vars(site)
    assert torch.equal(q(X), expected)


def test_json_and_table(q: QModule) -> None:
    found = sites(q, X)
    again = SiteTrace.from_json(found.to_json())
    assert again == found
    assert found.worst(1)[0].path == ":act_in"
    text = render_sites(found, width=200)
    assert "4 sites, 1 batch, 1 reached by no value" in text
    assert ":weight" in text
    assert "25 %" in text
    with pytest.raises(KeyError, match=r"no site 'act_in' among 4; paths look like ':act_in'"):
        found["act_in"]


def test_what_cannot_be_asked(q: QModule) -> None:
    with pytest.raises(TraceError, match="sites got no batches"):
        sites(q, [])
    with pytest.raises(TraceError, match="takes batches, got one int"):
        sites(q, 3)
    with pytest.raises(PhaseError, match="sites takes the tree that"):
        sites(Scaled(), X)  # type: ignore[arg-type]
    with pytest.raises(PhaseError, match=r"trace\.sites before the tree is ready"):
        sites(pyquant.prepare(Scaled(), pyquant.Policy.preset("w8a8")), X)
    with pytest.raises(TraceError, match="not JSON"):
        SiteTrace.from_json("{")
    with pytest.raises(TraceError, match="not as to_json writes it"):
        SiteTrace.from_json('{"format": "pyquant-sites-1"}')


def test_on_the_float_models_values_and_with_histograms(q: QModule) -> None:
    x = torch.tensor([[0.004, 2.55], [1.0, 0.5]])
    found = sites(q, x, on=Phase.FLOAT, histograms=True)
    assert q.phase is Phase.QUANTIZED
    plain = torch.nn.functional.linear(x, q.weight).detach()
    out, site = found[":act_out"], q.site("act_out")
    assert (out.low, out.high) == (float(plain.min()), float(plain.max()))
    assert out.max_error == pytest.approx(float((plain - site(plain)).abs().max()))
    assert found[":act_in"].max_error == pytest.approx(0.004)
    assert found[":weight"].sqnr == sites(q, x)[":weight"].sqnr
    for record in found:
        assert sum(record.counts) == (record.elements if record.low != record.high else 0)
        assert len(record.edges) == len(record.counts) + bool(record.counts)
    assert SiteTrace.from_json(found.to_json()) == found
    assert not sites(q, x)[":act_out"].counts
