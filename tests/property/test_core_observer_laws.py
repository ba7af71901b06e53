# SPDX-License-Identifier: Apache-2.0
"""Laws of observers and sites: merge is concatenation, order does not matter, the grid is idempotent and near."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyquant import PerAxis, PerGroup, PerTensor, QuantSpec, observe
from pyquant.observe import Observer
from pyquant.qparams import QParams
from pyquant.site import Phase, Role, Site
from pyquant.spec import INT4, INT8, INT16, UINT4, UINT8
from pyquant.tree_state import set_phase

SPECS = [
    QuantSpec(dtype, symmetric, granularity)
    for dtype, symmetric in [(INT4, True), (UINT4, False), (INT8, True), (INT8, False), (UINT8, False), (INT16, True)]
    for granularity in (PerTensor(), PerAxis(0), PerAxis(-1), PerGroup(1, 4))
]
PER_TENSOR = [spec for spec in SPECS if spec.granularity == PerTensor()]

values = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.floats(-0.125, 0.125, width=32),
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf")]),
)
finite = st.floats(-1e4, 1e4, width=32).map(lambda v: v if abs(v) > 1e-20 else 0.0)


def matrices(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    row = st.lists(elements, min_size=8, max_size=8)
    return st.lists(row, min_size=3, max_size=3).map(torch.tensor)


def seen(kind: str, spec: QuantSpec, xs: list[Tensor]) -> Observer:
    observer = observe.make(kind, {}, spec)
    for x in xs:
        observer.update(x)
    return observer


def same(a: Observer, b: Observer) -> None:
    assert a.count.tolist() == b.count.tolist()
    for x, y in zip(a.range(), b.range(), strict=True):
        assert x.shape == y.shape
        assert torch.equal(x, y) or (x.isnan() == y.isnan()).all()


@pytest.mark.parametrize(("kind", "specs"), [("minmax", SPECS), ("percentile", PER_TENSOR), ("mse", PER_TENSOR)])
@given(xs=st.lists(matrices(values), min_size=2, max_size=5), cut=st.integers(0, 5), pick=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_merge_is_the_observer_of_the_concatenation(
    kind: str, specs: list[QuantSpec], xs: list[Tensor], cut: int, pick: int
) -> None:
    spec = specs[pick % len(specs)]
    one, two, both = seen(kind, spec, xs[:cut]), seen(kind, spec, xs[cut:]), seen(kind, spec, xs)
    one.merge(two)
    same(one, both)
    assert one.batches == both.batches


@pytest.mark.parametrize(("kind", "specs"), [("minmax", SPECS), ("percentile", PER_TENSOR), ("mse", PER_TENSOR)])
@given(xs=st.lists(matrices(values), min_size=2, max_size=4), pick=st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_order_of_batches_does_not_matter(kind: str, specs: list[QuantSpec], xs: list[Tensor], pick: int) -> None:
    spec = specs[pick % len(specs)]
    same(seen(kind, spec, xs), seen(kind, spec, xs[::-1]))


@given(x=matrices(finite), pick=st.integers(0, len(SPECS) - 1), constant=st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_grid_is_idempotent_near_and_keeps_zero(x: Tensor, pick: int, constant: bool) -> None:
    spec = SPECS[pick]
    site = Site("a:b", Role.WEIGHT if constant else Role.ACTIVATION, spec)
    site.constant(x) if constant else site(x)
    qparams = site.compute_qparams()
    if isinstance(qparams, str):  # only an activation without a range has no grid
        assert not constant
        assert float(x.abs().max()) < 1e-30
        return
    site.set_qparams(qparams)
    site.state.converted = True
    set_phase(site, Phase.QUANTIZED)
    y = site(x)
    assert torch.equal(site(y), y)
    assert torch.equal(site(torch.zeros_like(x)), torch.zeros_like(x))
    step = _expanded(qparams, x)
    # The range covers every value; zero_point and scale round, which moves an end of the grid by up to one step.
    assert ((x - y).abs() <= step * (0.5 if spec.symmetric else 1.0) * 1.001 + 1e-30).all()


def _expanded(grid: QParams, x: Tensor) -> Tensor:
    if grid.axis is None:
        return grid.scale.expand_as(x)
    if grid.group:
        return grid.scale.repeat_interleave(grid.group, grid.axis)
    shape = [1] * x.dim()
    shape[grid.axis] = -1
    return grid.scale.reshape(shape).expand_as(x)
