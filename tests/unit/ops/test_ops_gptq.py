# SPDX-License-Identifier: Apache-2.0
"""gram_accumulate_, gptq_solve: against the reference, exact sums, brute-force least squares; NaN, threads, groups."""

from __future__ import annotations

import pytest
import torch
from ops_cases import DTYPES, assert_same_bits, by_name, ordinary
from torch import Tensor

from pyquant import ops
from pyquant.ops import reference_gptq
from pyquant.ops.reference_gptq import fused

dtypes = pytest.mark.parametrize("dtype", by_name(DTYPES))


def small_integers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Values whose products and sums are exact in every order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def factor_of(h: Tensor) -> Tensor:
    """U of inv(h) = U.T @ U."""
    return torch.linalg.cholesky(torch.linalg.inv(h.double()), upper=True).float()


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the second moments of correlated inputs, their factor."""
    mix = ordinary((columns, columns), seed=seed) / columns**0.5 + 0.3 * torch.eye(columns)
    x = ordinary((3 * columns, columns), seed=seed + 1) @ mix
    h = x.T @ x
    h += 0.01 * h.diagonal().mean() * torch.eye(columns)
    return ordinary((rows, columns), seed=seed + 2), h, factor_of(h)


def grid_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.abs().amax(1) / 7, torch.zeros(len(weight), dtype=torch.int32)


# --- gram_accumulate_


@pytest.mark.usefixtures("isa")
@dtypes
@pytest.mark.parametrize("shape", [(700, 101), (2, 3, 24), (1, 1), (513, 48), (5, 25)], ids=str)
def test_gram_is_exact_where_sums_are(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = small_integers(shape, dtype)
    gram = torch.ones(shape[-1], shape[-1])
    expected = gram.clone()
    for _ in range(2):
        ops.gram_accumulate_(gram, x)
        reference_gptq.gram_accumulate_(expected, x)
    assert_same_bits(gram, expected)
    rows = x.double().reshape(-1, shape[-1])
    assert torch.equal(gram.double(), 1 + 2 * rows.T @ rows)


@pytest.mark.usefixtures("isa")
def test_gram_is_the_chain_that_its_words_say() -> None:
    x = ordinary((300, 30))
    gram = torch.zeros(30, 30)
    ops.gram_accumulate_(gram, x)
    expected = torch.zeros(30, 30)
    for part in x.split(256):
        total = torch.zeros(30, 30)
        for row in part:
            total = fused(row[:, None].expand(30, 30), row[None].expand(30, 30), total)
        expected += total
    assert_same_bits(gram, expected)


def test_gram_of_many_rows_keeps_its_digits() -> None:
    x = ordinary((100_000, 30)) + 1
    exact = x.double().T @ x.double()
    magnitude = x.double().abs().T @ x.double().abs()
    for rows in (1000, 100_000):
        gram = torch.zeros(30, 30)
        for part in x.split(rows):
            ops.gram_accumulate_(gram, part)
        assert ((gram - exact).abs() / magnitude).max() < 2e-6


def test_gram_near_the_reference() -> None:
    """Another order of sums: the bound of a sum of n terms, n roundings of the magnitudes."""
    x = ordinary((900, 70))
    gram, other = torch.zeros(70, 70), torch.zeros(70, 70)
    ops.gram_accumulate_(gram, x)
    reference_gptq.gram_accumulate_(other, x)
    assert ((gram - other).abs() <= 900 * 2**-24 * (x.abs().T @ x.abs())).all()
    assert torch.equal(gram, gram.T)


def test_gram_of_views_and_of_nothing() -> None:
    x = small_integers((64, 96))
    for view in (x.T, x[:, ::2], x[::3], x[:1].expand(40, 96), x.view(4, 16, 96).transpose(0, 1), x[0]):
        gram = torch.zeros(view.shape[-1], view.shape[-1])
        ops.gram_accumulate_(gram, view)
        rows = view.reshape(-1, view.shape[-1])
        assert torch.equal(gram, rows.T @ rows)
    for shape in ((0, 5), (3, 0), (0, 0)):
        gram = torch.ones(shape[1], shape[1])
        ops.gram_accumulate_(gram, torch.zeros(shape))
        assert torch.equal(gram, torch.ones(shape[1], shape[1]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gram_keeps_nan_in_its_column(bad: float) -> None:
    x = ordinary((300, 30))
    x[7, 25] = bad
    gram = torch.zeros(30, 30)
    ops.gram_accumulate_(gram, x)
    finite = gram.isfinite()
    assert not finite[25].any()
    assert not finite[:, 25].any()
    assert int((~finite).sum()) == 59


# --- gptq_solve


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(5, 7, 0), (50, 300, 0), (30, 260, 20), (25, 130, 1), (1, 1, 0), (24, 128, 128)]
)
def test_solve_equals_the_reference(rows: int, columns: int, group: int) -> None:
    weight, _, u = problem(rows, columns)
    shape = (rows, columns // group) if group else (rows,)
    scale = ordinary(shape, seed=5).abs() * 0.2 + 0.05
    zero_point = torch.arange(scale.numel(), dtype=torch.int32).reshape(shape) % 16
    args = (weight, u, scale, zero_point, group, 0, 15)
    assert_same_bits(ops.gptq_solve(*args), reference_gptq.gptq_solve(*args))


def test_solve_of_views_and_of_nothing() -> None:
    weight, _, u = problem(6, 10)
    scale, zero_point = grid_of(weight)
    expected = ops.gptq_solve(weight, u, scale, zero_point, 0, -7, 7)
    lower_is_not_read = u + torch.full_like(u, torch.nan).tril(-1).nan_to_num(1e9)
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in (weight, lower_is_not_read, scale, zero_point)]
    assert not any(t.is_contiguous() for t in strided)
    assert_same_bits(ops.gptq_solve(*strided, 0, -7, 7), expected)
    assert_same_bits(ops.gptq_solve(weight.T.contiguous().T, u.T.contiguous().T, *grid_of(weight), 0, -7, 7), expected)
    for rows, columns in ((0, 10), (6, 0)):
        integers, loss = ops.gptq_solve(
            torch.zeros(rows, columns), torch.eye(columns), torch.ones(rows), torch.zeros(rows).int(), 0, -7, 7
        )
        assert integers.shape == (rows, columns)
        assert loss.tolist() == [0.0] * rows


def test_solve_loses_what_its_loss_says_and_less_than_rounding() -> None:
    weight, h, u = problem(20, 64)
    scale, zero_point = grid_of(weight)
    integers, loss = ops.gptq_solve(weight, u, scale, zero_point, 0, -7, 7)

    def increase(w: Tensor) -> Tensor:
        d = (weight - w).double()
        return 0.5 * ((d @ h.double()) * d).sum(1)

    found = increase(integers * scale[:, None])
    assert torch.allclose(loss.double(), found, rtol=1e-3)
    nearest = increase(ops.fake_quantize(weight, scale, zero_point, 0, 0, -7, 7))
    assert found.sum() < 0.7 * nearest.sum()
    assert int(integers.min()) >= -7
    assert int(integers.max()) <= 7


def test_columns_in_another_order_have_their_own_scales() -> None:
    """Act-order with groups: each column's scale, group 1; without an order it is the same as groups."""
    weight, h, u = problem(9, 60)
    scale = ordinary((9, 3), seed=3).abs() * 0.1 + 0.1
    zero_point = torch.zeros(9, 3, dtype=torch.int32)
    wide = [t.repeat_interleave(20, 1) for t in (scale, zero_point)]
    in_order = ops.gptq_solve(weight, u, scale, zero_point, 20, -7, 7)
    assert_same_bits(ops.gptq_solve(weight, u, *wide, 1, -7, 7), in_order)
    order = h.diagonal().argsort(descending=True)
    args = (weight[:, order], factor_of(h[order][:, order]), *(t[:, order] for t in wide), 1, -7, 7)
    assert_same_bits(ops.gptq_solve(*args), reference_gptq.gptq_solve(*args))


def test_a_row_is_solved_as_if_alone() -> None:
    weight, _, u = problem(30, 140)
    scale, zero_point = grid_of(weight)
    integers, loss = ops.gptq_solve(weight, u, scale, zero_point, 0, -7, 7)
    spoiled = weight.clone()
    spoiled[3, 50], spoiled[4, 0] = torch.nan, torch.inf
    found, found_loss = ops.gptq_solve(spoiled, u, scale, zero_point, 0, -7, 7)
    others = [r for r in range(30) if r not in (3, 4)]
    assert torch.equal(found[others], integers[others])
    assert torch.equal(found_loss[others], loss[others])
    assert torch.equal(found[3, :50], integers[3, :50])
    assert (found[3, 50:] == -7).all()
    assert found[4, 0] == 7
    assert not found_loss[3:5].isfinite().any()
    alone = ops.gptq_solve(weight[8:9], u, scale[8:9], zero_point[8:9], 0, -7, 7)
    assert_same_bits(alone, (integers[8:9], loss[8:9]))


def test_threads_do_not_change_a_bit() -> None:
    weight, _, u = problem(100, 300)
    x = ordinary((1000, 300))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        gram = torch.zeros(300, 300)
        ops.gram_accumulate_(gram, x)
        results.append((gram, *ops.gptq_solve(weight, u, *grid_of(weight), 0, -7, 7)))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.parametrize("ordered", [True, False], ids=["GPTAQ", "all columns at once"])
def test_corrections_are_those_of_least_squares(ordered: bool) -> None:
    """After each column, the columns that are left equal the brute-force minimum; then the operator gives the same."""
    rows, columns, n = 5, 8, 40
    x = ordinary((columns, n)).double()
    x_float = x + 0.3 * ordinary((columns, n), seed=1).double()
    weight = ordinary((rows, columns), seed=2).double()
    scale = weight.abs().amax(1) / 7
    u = torch.linalg.cholesky(torch.linalg.inv(x @ x.T), upper=True)
    moved = (x_float - x) @ x.T
    p = (moved @ u.T).triu(1) @ u if ordered else moved @ u.T @ u

    w, q = weight + weight @ p, torch.zeros_like(weight)
    for j in range(columns):
        q[:, j] = (w[:, j] / scale).round().clamp(-7, 7)
        w[:, j + 1 :] -= ((w[:, j] - q[:, j] * scale) / u[j, j])[:, None] * u[j, j + 1 :]
        if j + 1 < columns:
            now = w[:, j + 1 :].clone()
            target = weight @ x_float
            if ordered:  # columns that were not solved yet still see the inputs of the quantized layers
                target += weight[:, j + 1 :] @ (x - x_float)[j + 1 :]
                now -= weight[:, j + 1 :] @ p[j + 1 :, j + 1 :]
            left = target - (q[:, : j + 1] * scale[:, None]) @ x[: j + 1]
            best = torch.linalg.lstsq(x[j + 1 :].T, left.T).solution.T
            assert (now - best).abs().max() < 1e-10
    zero_point = torch.zeros(rows, dtype=torch.int32)
    integers, _ = ops.gptq_solve(weight.float(), u.float(), scale.float(), zero_point, 0, -7, 7, p.float())
    assert torch.equal(integers, q.int())

    def distance(integers: Tensor) -> float:
        return float(((integers * scale[:, None]) @ x - weight @ x_float).square().sum())

    assert distance(q) < distance(ops.gptq_solve(weight.float(), u.float(), scale.float(), zero_point, 0, -7, 7)[0])


def test_fused_rounds_once() -> None:
    a = torch.tensor([1 + 2.0**-12, 1 + 2.0**-23, 3.0, 2.0**-100, torch.inf, 0.0])
    b = torch.tensor([1 + 2.0**-12, 1 - 2.0**-24, 1 / 3, 2.0**-40, 1.0, 1.0])
    c = torch.tensor([2.0**-60, -1.0, -1.0, 2.0**-149, 1.0, -0.0])
    # the first: a tie of float32 that only the last bits of the exact sum break
    expected = [1 + 2.0**-11 + 2.0**-23, 2.0**-24 - 2.0**-47, 2.0**-25, 2.0**-140 + 2.0**-149, torch.inf, 0.0]
    assert fused(a, b, c).tolist() == expected
