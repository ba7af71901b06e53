# SPDX-License-Identifier: Apache-2.0
"""The metrics on numbers worked out by hand, on edges, and as laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyquant.verify import cosine, lsb_error, max_abs_diff, mean_abs_diff, peir, sqnr_db

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
