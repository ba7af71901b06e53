# SPDX-License-Identifier: Apache-2.0
"""Hadamard and other orthogonal matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyquant import ops
from pyquant.algorithms.orthogonal import Rotation, core, rotation
from pyquant.errors import InputError

# widths of released models: SmolLM2, Llama, Qwen3-VL 2B, 4B, 8B and its towers, Gemma, Qwen2
WIDTHS = (576, 896, 960, 1024, 1152, 1536, 2048, 2560, 3584, 4096)


def hadamard(n: int) -> torch.Tensor:
    """Row i is what hadamard_ makes of the unit vector i."""
    found = core(n)
    assert found is not None
    rows = torch.eye(n, dtype=torch.float64)
    ops.hadamard_(rows, found)
    return rows


def matrix(r: Rotation) -> torch.Tensor:
    return r(torch.eye(r.n, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 60, *WIDTHS])
def test_hadamard(n: int) -> None:
    """Entries are 1 and -1, and rows are at right angles: exact, since the sums are integers."""
    h = hadamard(n)
    assert bool((h.abs() == 1).all())
    rows = torch.arange(0, n, max(1, n // 64), dtype=torch.int64)
    expected = torch.zeros(len(rows), n, dtype=torch.float64)
    expected[torch.arange(len(rows)), rows] = n
    assert torch.equal(h[rows] @ h.T, expected)


def test_hadamard_of_a_power_of_two_is_sylvesters() -> None:
    bits = np.array([[bin(i & j).count("1") for j in range(16)] for i in range(16)])
    assert np.array_equal(hadamard(16).numpy(), (-1.0) ** bits)


@pytest.mark.parametrize("n", [0, 3, 5, 6, 18, 52, 92])
def test_orders_without_a_construction(n: int) -> None:
    assert core(n) is None


@pytest.mark.parametrize("n", [1, 2, 7, 12, 32, 90])
@pytest.mark.parametrize("keep_mean", [False, True])
def test_rotations_are_orthogonal_and_the_same_for_a_seed(n: int, keep_mean: bool) -> None:
    r = matrix(rotation(n, 3, keep_mean=keep_mean))
    unit = torch.eye(n, dtype=torch.float64)
    assert torch.allclose(r @ r.T, unit, atol=1e-13)
    assert torch.equal(r, matrix(rotation(n, 3, keep_mean=keep_mean)))
    if n > 2:
        assert not torch.equal(r, matrix(rotation(n, 4, keep_mean=keep_mean)))
        assert float(r.abs().max()) < 0.99  # it mixes
    if keep_mean:
        ones = torch.ones(n, dtype=torch.float64)
        assert torch.allclose(r @ ones, ones, atol=1e-13)
        assert torch.allclose(r.T @ ones, ones, atol=1e-13)


@pytest.mark.parametrize("n", [7, 12, 64, 576])
def test_rows_take_their_rotation_in_parts_in_any_layout(n: int) -> None:
    turn = rotation(n, 5)
    x = torch.randn(9, 3 * n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x.view(9, 3, n) @ matrix(turn)).view(9, 3 * n)
    before = x.clone()
    assert torch.allclose(turn(x), expected, atol=1e-12)
    assert torch.equal(x, before), "the rows that are given stay as they are"
    assert torch.equal(turn(x.T.contiguous().T), turn(x))
    if n != 7:
        assert torch.equal(torch.cat([turn(x[:4]), turn(x[4:])]), turn(x)), "however rows are cut into calls"


def test_no_channels() -> None:
    with pytest.raises(InputError, match="at least one channel, got 0"):
        rotation(0, 0)
