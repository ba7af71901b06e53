# SPDX-License-Identifier: Apache-2.0
"""Observers: what each kind measures, what it counts, how two become one, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyquant import PerAxis, PerGroup, QuantSpec, observe
from pyquant.errors import SpecError
from pyquant.observe import Observer
from pyquant.spec import INT4, INT8, UINT8

TENSOR = QuantSpec(UINT8)
CHANNEL = QuantSpec(INT8, True, PerAxis(0))
GROUP = QuantSpec(INT4, True, PerGroup(1, 4))
KINDS = ("minmax", "ema", "percentile", "mse")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def seen(observer: Observer, *xs: Tensor) -> Observer:
    for x in xs:
        observer.update(x)
    return observer


def ranges(observer: Observer) -> tuple[list[float], list[float]]:
    lo, hi = observer.range()
    return lo.flatten().tolist(), hi.flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minmax_keeps_the_widest_range(dtype: torch.dtype) -> None:
    observer = seen(
        observe.make("minmax", {}, TENSOR), *(torch.tensor(v, dtype=dtype) for v in ([1.0, 2], [-3.0, 0.5]))
    )
    assert ranges(observer) == ([-3.0], [2.0])
    assert (observer.batches, observer.elements, observer.non_finite) == (2, 4, 0)
    lo, hi = observer.range()
    assert lo.dtype == hi.dtype == torch.float32
    assert lo.shape == hi.shape == ()


@pytest.mark.parametrize("axis", [0, 1, 2, -1], ids=lambda a: f"axis{a}")
def test_minmax_per_channel(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    lo, hi = seen(observe.make("minmax", {}, QuantSpec(INT8, True, PerAxis(axis))), x).range()
    other = [d for d in range(3) if d != axis % 3]
    assert torch.equal(lo, x.amin(other))
    assert torch.equal(hi, x.amax(other))


@pytest.mark.parametrize("axis", [0, 1, -1], ids=lambda a: f"axis{a}")
def test_minmax_per_group_has_the_shape_of_the_scales(axis: int) -> None:
    x = torch.randn(8, 12)
    lo, hi = seen(observe.make("minmax", {}, QuantSpec(INT4, True, PerGroup(axis, 4))), x).range()
    for i in range(lo.shape[0]):
        for j in range(lo.shape[1]):
            part = x[4 * i : 4 * i + 4, j] if axis == 0 else x[i, 4 * j : 4 * j + 4]
            assert (lo[i, j], hi[i, j]) == (part.min(), part.max())
    assert lo.shape == ((2, 12) if axis == 0 else (8, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_values_are_counted_and_left_out(kind: str) -> None:
    x = torch.tensor([1.0, torch.nan, -2.0, torch.inf, -torch.inf])
    observer = seen(observe.make(kind, {}, TENSOR), x)
    assert (observer.elements, observer.non_finite) == (5, 3)
    lo, hi = observer.range()
    assert -2.01 <= lo <= hi <= 1.01  # a histogram has the resolution of a bin


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_never_changes_what_it_sees(kind: str) -> None:
    x = torch.randn(64, requires_grad=True)
    before = x.detach().clone()
    seen(observe.make(kind, {}, TENSOR), x)
    assert torch.equal(x, before)
    assert x.grad_fn is None


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets(kind: str) -> None:
    observer = seen(observe.make(kind, {}, TENSOR), torch.randn(64) * 100)
    observer.reset()
    assert (observer.batches, observer.elements) == (0, 0)
    fresh = seen(observe.make(kind, {}, TENSOR), torch.ones(8))
    assert ranges(seen(observer, torch.ones(8))) == ranges(fresh)


def test_ema_first_batch_sets_then_fades() -> None:
    observer = observe.make("ema", {"momentum": 0.75}, TENSOR)
    assert ranges(seen(observer, torch.tensor([-1.0, 1.0]))) == ([-1.0], [1.0])
    assert ranges(seen(observer, torch.tensor([-5.0, 9.0]))) == ([-2.0], [3.0])


def test_percentile_leaves_the_tails_out() -> None:
    x = torch.cat([torch.linspace(-1, 1, 10_000), torch.tensor([100.0])])
    lo, hi = seen(observe.make("percentile", {"lower": 1.0, "upper": 99.0}, TENSOR), x).range()
    assert -1.1 <= lo <= -0.9
    assert 0.9 <= hi <= 1.1


def test_percentile_of_everything_is_minmax() -> None:
    x = torch.randn(1000)
    observer = seen(observe.make("percentile", {"lower": 0.0, "upper": 100.0}, TENSOR), x)
    lo, hi = observer.range()
    bin_width = float(x.max() - x.min()) / 1024  # at least half of the bins are in use
    assert x.min() - bin_width <= lo <= x.min()
    assert x.max() <= hi <= x.max() + bin_width


def test_mse_gives_up_an_outlier_that_costs_the_rest() -> None:
    x = torch.cat([torch.randn(100_000), torch.tensor([100.0])])
    _, hi = seen(observe.make("mse", {}, QuantSpec(INT4, True)), x).range()
    assert hi < 10


@pytest.mark.parametrize("spec", [QuantSpec(INT4, True), QuantSpec(INT4, True, PerAxis(0)), GROUP], ids=str)
def test_mse_of_a_constant_loses_no_more_than_minmax(spec: QuantSpec) -> None:
    from pyquant import ops

    x = torch.randn(6, 64)
    x[:, 0] *= 10
    loss = {}
    for kind in ("minmax", "mse"):
        grid = seen(observe.make(kind, {}, spec, constant=True), x).qparams()
        y = ops.fake_quantize(x, grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax)
        loss[kind] = float((x - y).square().mean())
    assert loss["mse"] < loss["minmax"]


def test_a_constant_is_seen_whole_so_ema_is_its_range() -> None:
    assert type(observe.make("ema", {"momentum": 0.9}, CHANNEL, constant=True)) is observe.MinMaxObserver


def test_fixed_needs_no_data() -> None:
    observer = observe.make("fixed", {"lo": -2.0, "hi": 3.0}, TENSOR)
    assert not observer.needs_data
    assert ranges(seen(observer, torch.tensor([50.0]))) == ([-2.0], [3.0])
    grid = observer.qparams()
    assert grid.scale.item() == pytest.approx(5 / 255)
    assert grid.zero_point.item() == 102


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
def test_merge_of_equal_ranges_is_the_observer_of_both(kind: str) -> None:
    a, b = torch.randn(500).clamp(-2, 2), torch.randn(300).clamp(-2, 2)
    for x in (a, b):
        x[0], x[1] = -2.0, 2.0
    one, two = seen(observe.make(kind, {}, TENSOR), a), seen(observe.make(kind, {}, TENSOR), b)
    one.merge(two)
    both = seen(observe.make(kind, {}, TENSOR), torch.cat([a, b]))
    assert ranges(one) == ranges(both)
    assert one.elements == both.elements
    assert one.batches == 2


def test_merge_of_different_histograms_keeps_every_count() -> None:
    one, two = (seen(observe.make("percentile", {}, TENSOR), torch.randn(400) * s) for s in (1.0, 7.0))
    assert isinstance(one, observe.PercentileObserver)
    widest = max(float(one.edges[1]), float(two.edges[1]))
    one.merge(two)
    assert int(one.counts.sum()) == 800
    assert float(one.edges[1]) == widest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", ["self", "other"])
def test_merge_with_an_observer_without_data(kind: str, empty: str) -> None:
    x = torch.randn(100)
    full, fresh = seen(observe.make(kind, {}, TENSOR), x), observe.make(kind, {}, TENSOR)
    want = ranges(full)
    one, two = (fresh, full) if empty == "self" else (full, fresh)
    one.merge(two)
    assert ranges(one) == want
    assert (one.elements, one.batches) == (100, 1)


def test_merge_per_channel_into_a_fresh_one_takes_the_shape() -> None:
    x = torch.randn(4, 8)
    fresh = observe.make("minmax", {}, GROUP)
    fresh.merge(seen(observe.make("minmax", {}, GROUP), x))
    assert fresh.range()[0].shape == (4, 2)


def test_merged_ema_weighs_by_batches() -> None:
    one = seen(observe.make("ema", {}, TENSOR), torch.tensor([0.0, 1.0]))
    two = seen(observe.make("ema", {}, TENSOR), *[torch.tensor([0.0, 5.0])] * 3)
    one.merge(two)
    assert ranges(one) == ([0.0], [4.0])


BAD = {
    "kind": (lambda: observe.make("kl", {}, TENSOR), "observer 'kl' does not exist; choose one of minmax, ema"),
    "momentum": (lambda: observe.make("ema", {"momentum": 1.0}, TENSOR), r"momentum must lie in \[0, 1\), got 1.0"),
    "percentile": (lambda: observe.make("percentile", {"lower": 60, "upper": 40}, TENSOR), "0 <= lower < upper <= 100"),
    "bins": (lambda: observe.make("mse", {"bins": 3}, TENSOR), "bins must be even and at least 16, got 3"),
    "histogram-per-channel": (lambda: observe.make("percentile", {}, CHANNEL), "a histogram is kept per tensor"),
    "fixed-order": (
        lambda: observe.make("fixed", {"lo": 1.0, "hi": 1.0}, TENSOR),
        r"finite with lo < hi, got \[1.0, 1.0\]",
    ),
    "fixed-nan": (lambda: observe.make("fixed", {"lo": float("nan"), "hi": 1.0}, TENSOR), "must be finite"),
    "fixed-per-channel": (
        lambda: observe.make("fixed", {"lo": 0.0, "hi": 1.0}, CHANNEL),
        "a known range is per tensor",
    ),
    "axis": (
        lambda: seen(observe.make("minmax", {}, QuantSpec(INT8, True, PerAxis(2))), torch.ones(2, 2)),
        r"axis 2 does not exist in a tensor of shape \(2, 2\)",
    ),
    "group": (
        lambda: seen(observe.make("minmax", {}, GROUP), torch.ones(2, 6)),
        r"the group size must divide dimension 1 of \(2, 6\)",
    ),
    "merge-kind": (
        lambda: observe.make("minmax", {}, TENSOR).merge(observe.make("ema", {}, TENSOR)),
        "cannot merge EmaObserver of uint8 asymmetric per-tensor into MinMaxObserver",
    ),
    "merge-spec": (
        lambda: observe.make("minmax", {}, TENSOR).merge(observe.make("minmax", {}, CHANNEL)),
        "merge observers of the same site",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(SpecError, match=message):
        make()
