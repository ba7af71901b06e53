# SPDX-License-Identifier: Apache-2.0
"""Owns the tests of the arithmetic of a difference: PEIR, SQNR, cosine, and the edges of each.
Leaves the pairing of values to `test_compare.py`.
"""

from __future__ import annotations

import math

import pytest
import torch

from pyquant.trace import Difference, difference


def test_the_formulas_on_numbers_done_by_hand() -> None:
    a, b = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([0.5, 1.0, 1.0, 5.0])
    found, clashes = difference(a, b)
    assert clashes == 0
    assert found.elements == 4
    assert (found.mean, found.min, found.max) == (0.125, -0.5, 1.0)
    assert found.std == pytest.approx(math.sqrt((0.25 + 1.0) / 4 - 0.125**2))
    assert found.peir == pytest.approx(1.0 / 5.0)
    assert found.sqnr == pytest.approx(10 * math.log10(30 / 1.25))
    assert found.cosine == pytest.approx((1 + 2 + 25) / math.sqrt(30 * 27.25))
    assert found.peak == 1.0
    assert not found.equal


def test_equal_tensors() -> None:
    x = torch.randn(10)
    found, _ = difference(x, x.clone())
    assert found.equal
    assert (found.peir, found.sqnr, found.peak) == (0.0, math.inf, 0.0)
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b", "peir", "sqnr", "cosine"),
    [
        ([1.0, 1.0], [1.0, 1.5], math.inf, 10 * math.log10(2 / 0.25), None),
        ([0.0, 0.0], [0.0, 1.0], math.inf, -math.inf, 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, math.inf, 1.0),
        ([0.0, 1.0], [0.0, 0.0], 1.0, 0.0, 0.0),
        ([1.0, -1.0], [-1.0, 1.0], 1.0, 10 * math.log10(2 / 8), -1.0),
    ],
    ids=["constant", "zero_reference", "both_zero", "zero_other", "opposite"],
)
def test_edges(a: list[float], b: list[float], peir: float, sqnr: float, cosine: float | None) -> None:
    found, _ = difference(torch.tensor(a), torch.tensor(b))
    assert found.peir == pytest.approx(peir)
    assert found.sqnr == pytest.approx(sqnr)
    if cosine is not None:
        assert found.cosine == pytest.approx(cosine)


def test_nothing_to_compare() -> None:
    found, clashes = difference(torch.empty(0, 3), torch.empty(0, 3))
    assert (found, clashes) == (Difference(elements=0), 0)
    assert found.equal


def test_nonfinite_elements_match_or_clash_and_are_left_out() -> None:
    nan, inf = math.nan, math.inf
    same, clashes = difference(torch.tensor([nan, inf, -inf, 1.0, 3.0]), torch.tensor([nan, inf, -inf, 1.0, 2.0]))
    assert clashes == 0
    assert (same.elements, same.max, same.peir) == (2, 1.0, 0.5)
    other, clashes = difference(torch.tensor([nan, inf, 1.0, inf]), torch.tensor([1.0, -inf, inf, nan]))
    assert clashes == 4
    assert other == Difference(elements=0)


def test_dtypes_may_differ_and_integers_do_not_wrap() -> None:
    found, _ = difference(torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([255, 0], dtype=torch.uint8))
    assert (found.min, found.max) == (-255.0, 255.0)
    found, _ = difference(torch.tensor([True, False]), torch.tensor([1, 1]))
    assert (found.min, found.max) == (-1.0, 0.0)
    x = torch.tensor([1.0, 2.0])
    assert difference(x, x.bfloat16())[0].equal
    assert difference(torch.tensor([1 + 2j]), torch.tensor([1 + 1j]))[0].max == 1.0


def test_large_fills_do_not_overflow() -> None:
    low = torch.finfo(torch.float64).min
    a = torch.tensor([low, 0.0, low], dtype=torch.float64)
    found, _ = difference(a, torch.tensor([low, 1.0, low], dtype=torch.float64))
    assert found.sqnr is not None
    assert 6000 < found.sqnr < 6200
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_ratios_do_not_depend_on_the_unit(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(100, generator=generator, dtype=torch.float64)
    b = a + 0.01 * torch.randn(100, generator=generator, dtype=torch.float64)
    one, _ = difference(a, b)
    other, _ = difference(a * scale, b * scale)
    assert (other.peir, other.sqnr, other.cosine) == pytest.approx((one.peir, one.sqnr, one.cosine))
