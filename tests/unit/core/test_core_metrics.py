# SPDX-License-Identifier: Apache-2.0
"""The metrics on numbers computed by hand, at their edge cases, and as laws; accumulated over batches too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyquant.metrics import Deviation, cosine, lsb_error, max_abs_diff, mean_abs_diff, peir, sqnr_db

REF = [0.0, 1.0, 3.0, -1.0]
GOT = [0.0, 1.5, 2.0, -1.0]


@pytest.mark.parametrize(
    "wrap", [torch.tensor, np.array, lambda v: torch.tensor(v, dtype=torch.bfloat16)], ids=["torch", "numpy", "bf16"]
)
def test_by_hand(wrap: object) -> None:
    ref, got = wrap(REF), wrap(GOT)  # type: ignore[operator]
    assert peir(ref, got) == pytest.approx(1.0 / 4.0)
    assert max_abs_diff(ref, got) == pytest.approx(1.0)
    assert mean_abs_diff(ref, got) == pytest.approx(1.5 / 4)
    assert sqnr_db(ref, got) == pytest.approx(10 * math.log10(11 / 1.25))
    assert cosine(ref, got) == pytest.approx((1.5 + 6 + 1) / math.sqrt(11 * (2.25 + 4 + 1)))
    assert lsb_error(ref, got, 0.5).tolist() == [0, 1, 2, 0]


def test_lsb_error_per_channel() -> None:
    assert lsb_error(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([[1.0], [0.25]])).tolist() == [[1, 1], [4, 4]]


@pytest.mark.parametrize("value", [[], [0.0], [2.0, 2.0], [1.0, -3.0]], ids=["empty", "zero", "constant", "two"])
def test_equal_tensors(value: list[float]) -> None:
    assert peir(value, value) == 0.0
    assert sqnr_db(value, value) == math.inf
    assert mean_abs_diff(value, value) == max_abs_diff(value, value) == 0.0
    assert cosine(value, value) == pytest.approx(1.0)


def test_edges() -> None:
    assert peir([2.0, 2.0], [2.0, 3.0]) == math.inf
    assert sqnr_db([0.0, 0.0], [1.0, 0.0]) == -math.inf
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert cosine([1.0, 0.0], [-1.0, 0.0]) == -1.0
    with pytest.raises(ValueError, match=r"the tensors differ in shape: reference \(2,\), other \(1,\)"):
        peir([1.0, 2.0], [1.0])


FINITE = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=8)


@given(FINITE, st.floats(0.1, 10))
def test_ratios_do_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    ref, got = np.array(values), np.array(values) + np.linspace(-1, 1, len(values))
    assert peir(ref * unit, got * unit) == pytest.approx(peir(ref, got), rel=1e-6, abs=1e-12)
    assert cosine(ref * unit, got * unit) == pytest.approx(cosine(ref, got), abs=1e-9)
    assert lsb_error(ref * unit, got * unit, 0.5 * unit).max() == pytest.approx(lsb_error(ref, got, 0.5).max())


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("ref", "got"),
    [
        ([1.0, NAN], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, NAN]),
        ([1.0, NAN], [1.0, NAN]),
        ([1.0, 2.0], [1.0, INF]),
        ([1.0, -INF], [1.0, INF]),
        ([1.0, INF], [1.0, 2.0]),
    ],
    ids=["nan_in_reference", "nan_in_other", "nan_in_both", "infinity_in_other", "other_sign", "infinity_in_reference"],
)
def test_what_is_not_finite_is_an_infinite_error(ref: list[float], got: list[float]) -> None:
    assert (sqnr_db(ref, got), peir(ref, got), cosine(ref, got)) == (-INF, INF, 0.0)
    assert (max_abs_diff(ref, got), mean_abs_diff(ref, got)) == (INF, INF)
    assert lsb_error(ref, got, 1.0).tolist() == [0.0, INF]


def test_an_infinity_of_both_is_no_error_and_counts_in_nothing() -> None:
    masked = [-INF, *REF], [-INF, *GOT]
    assert peir(*masked) == peir(REF, GOT)
    assert sqnr_db(*masked) == pytest.approx(sqnr_db(REF, GOT))
    assert cosine(*masked) == pytest.approx(cosine(REF, GOT))
    assert max_abs_diff(*masked) == 1.0


@pytest.mark.parametrize("unit", [1e-300, 1e-120, 1.0, 1e150, 1e300])
def test_squares_neither_overflow_nor_vanish(unit: float) -> None:
    ref, got = np.array(REF) * unit, np.array(GOT) * unit
    assert sqnr_db(ref, got) == pytest.approx(10 * math.log10(11 / 1.25))
    assert cosine(ref, got) == pytest.approx(cosine(REF, GOT))


def test_a_small_batch_beside_a_large_one_and_the_reverse() -> None:
    small, large = (np.array(REF) * 1e-200, np.array(GOT) * 1e-200), (np.array(REF) * 1e200, np.array(GOT) * 1e200)
    for pairs in [(small, large), (large, small), (small, small), (large, large)]:
        deviation = Deviation()
        for pair in pairs:
            deviation.add(*pair)
        assert deviation.sqnr == pytest.approx(sqnr_db(REF, GOT)), pairs
        assert deviation.cosine == pytest.approx(cosine(REF, GOT)), pairs


@given(st.lists(FINITE, min_size=1, max_size=4))
def test_batches_give_what_their_concatenation_gives(batches: list[list[float]]) -> None:
    deviation = Deviation()
    others = [np.array(batch) + np.linspace(-1, 1, len(batch)) for batch in batches]
    for batch, other in zip(batches, others, strict=True):
        deviation.add(batch, other)
    whole = np.concatenate(batches), np.concatenate(others)
    found = deviation.elements, deviation.sqnr, deviation.peir, deviation.mean_abs, deviation.max_abs
    assert found == pytest.approx((whole[0].size, *(m(*whole) for m in (sqnr_db, peir, mean_abs_diff, max_abs_diff))))
    assert deviation.cosine == pytest.approx(cosine(*whole), abs=1e-12)


def test_no_batch_at_all() -> None:
    empty = Deviation()
    assert (empty.elements, empty.mean_abs, empty.max_abs) == (0, 0.0, 0.0)
    assert (empty.sqnr, empty.peir, empty.cosine) == (INF, 0.0, 1.0)
    assert (empty.low, empty.high) == (INF, -INF)


def test_integers_do_not_wrap() -> None:
    assert max_abs_diff(torch.tensor([0], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)) == 255.0
    assert max_abs_diff(np.array([0], np.uint8), np.array([255], np.uint8)) == 255.0
