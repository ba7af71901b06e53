# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels, in every instruction set, equal the implementations in torch operations bit for bit."""

from __future__ import annotations

import pytest
import torch
from ops_cases import (
    DTYPES,
    GRANULARITIES,
    GRIDS,
    INF,
    SHAPE,
    Granularity,
    assert_same_bits,
    by_name,
    histogram_state,
    integer_for,
    observer_state,
    ordinary,
    random_bits,
    scales_for,
    ties,
)
from torch import Tensor

from pyquant import ops
from pyquant.ops import reference, reference_range, reference_search, reference_stats

pytestmark = pytest.mark.usefixtures("isa")
dtypes = pytest.mark.parametrize("dtype", by_name(DTYPES))
granularities = pytest.mark.parametrize("g", by_name(GRANULARITIES))
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "random bits": random_bits(SHAPE, dtype),
        "ordinary": ordinary(SHAPE, dtype),
        "ties": ties(SHAPE, dtype, 0.05),
        "empty": ordinary((0, *SHAPE[1:]), dtype),
        "transposed": ordinary(SHAPE[::-1], dtype).permute(2, 1, 0),
        "strided": ordinary((3, 10, 24), dtype)[..., ::2],
        "expanded": ordinary((1, 10, 12), dtype).expand(SHAPE),
    }


def rounding(x: Tensor, g: Granularity, grid: tuple[int, int]) -> None:
    scale, zero_point = scales_for(x, g, grid)
    args = (scale, zero_point, g.axis, g.group, *grid)
    assert_same_bits(ops.fake_quantize(x, *args), reference.fake_quantize(x, *args))
    grad = random_bits(tuple(x.shape), x.dtype, 1)
    backward = torch.ops.pyquant.fake_quantize_backward.default
    assert_same_bits(backward(grad, x, *args), reference.fake_quantize_backward(grad, x, *args))
    q = ops.quantize(x, *args, integer_for(grid))
    assert_same_bits(q, reference.quantize(x, *args, integer_for(grid)))
    back = ops.dequantize(q, scale, zero_point, g.axis, g.group)
    assert_same_bits(back, reference.dequantize(q, scale, zero_point, g.axis, g.group))
    assert_same_bits(ops.fake_quantize(x, *args), back.to(x.dtype))


@dtypes
@granularities
@grids
def test_rounding(dtype: torch.dtype, g: Granularity, grid: tuple[int, int]) -> None:
    for x in inputs(dtype).values():
        rounding(x, g, grid)


@dtypes
def test_rounding_of_every_length_and_offset(dtype: torch.dtype) -> None:
    x = random_bits((133,), dtype)
    for n in range(131):
        rounding(x[n % 3 :][:n], GRANULARITIES[0], GRIDS["int8"])
    rounding(x[5], GRANULARITIES[0], GRIDS["int8"])  # 0-d


@dtypes
@granularities
def test_minmax(dtype: torch.dtype, g: Granularity) -> None:
    for x in inputs(dtype).values():
        assert_same_bits(ops.minmax(x, g.axis, g.group), reference.minmax(x, g.axis, g.group))


@dtypes
def test_tensor_stats(dtype: torch.dtype) -> None:
    long = ordinary((3, 70_001), dtype, 2) + 5  # several chunks, an odd number of blocks
    more = {
        "long": long,
        "long with holes": torch.where(random_bits(tuple(long.shape), torch.float16, 3) > 0, long, torch.nan),
        "a block of infinities": torch.cat((long[0, :2048], torch.full((2048,), INF, dtype=dtype), long[1])),
        "nothing finite": torch.full((3000,), torch.nan, dtype=dtype),
        "a mask": torch.full((90, 90), torch.finfo(dtype).min, dtype=dtype).triu(1),
        "tiny": (ordinary((5000,)) * 2.0**-120).to(dtype),
        "constant": torch.full((5000,), 0.1, dtype=dtype),
        "one": torch.tensor([-0.0], dtype=dtype),
        "scalar": torch.tensor(3.0, dtype=dtype),
    }
    for x in (inputs(dtype) | more).values():
        assert_same_bits(ops.tensor_stats(x), reference_stats.tensor_stats(x))


@dtypes
@pytest.mark.parametrize("g", by_name(GRANULARITIES[:4]))
def test_running_ranges(dtype: torch.dtype, g: Granularity) -> None:
    scales = () if g.axis is None else (SHAPE[g.axis],)
    for native, generic, more in (
        (ops.observe_minmax_, reference.observe_minmax_, ()),
        (ops.observe_ema_, reference.observe_ema_, (0.9,)),
    ):
        actual, expected = observer_state(scales), observer_state(scales)
        for x in (*inputs(dtype).values(), torch.full(SHAPE, torch.nan, dtype=dtype)):
            if scales and x.shape[g.axis] != scales[0]:
                continue
            native(*actual, x, g.axis, *more)
            generic(*expected, x, g.axis, *more)
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@grids
def test_choose_qparams(symmetric: bool, grid: tuple[int, int]) -> None:
    values = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 0.3, -7.5, 1e-45, 1e-38, -1e-36, 3e38, -3e38, 1e30, INF, -INF, torch.nan]
    )
    lo, hi = (t.contiguous() for t in torch.meshgrid(values, values, indexing="ij"))
    assert_same_bits(ops.choose_qparams(lo, hi, *grid, symmetric), reference.choose_qparams(lo, hi, *grid, symmetric))
    lo, hi = ordinary((500,)).sub(1), ordinary((500,), seed=1).add(1)
    assert_same_bits(ops.choose_qparams(lo, hi, *grid, symmetric), reference.choose_qparams(lo, hi, *grid, symmetric))


@pytest.mark.parametrize("bits", [32, 64])
def test_bias(bits: int) -> None:
    bias = torch.cat((random_bits((300,), torch.float32), ordinary((300,)), ties((300,), torch.float32, 1e-3)))
    for scale in (torch.tensor(1e-3), torch.tensor(1e-30), ordinary((900,)).abs() + 1e-6):
        assert_same_bits(ops.quantize_bias(bias, scale, bits), reference.quantize_bias(bias, scale, bits))
        assert_same_bits(ops.fake_quantize_bias(bias, scale, bits), reference.fake_quantize_bias(bias, scale, bits))


@pytest.mark.parametrize("signed", [True, False], ids=["int4", "uint4"])
def test_int4(signed: bool) -> None:
    low, dtype = (-8, torch.int8) if signed else (0, torch.uint8)
    for n in range(70):
        q = (low + torch.arange(n) * 7 % 16).to(dtype)
        packed = ops.pack_int4(q)
        assert_same_bits(packed, reference.pack_int4(q))
        assert_same_bits(ops.unpack_int4(packed, n, signed), reference.unpack_int4(packed, n, signed))
        assert_same_bits(ops.unpack_int4(packed, n, signed), q)


@dtypes
@pytest.mark.parametrize("bins", [16, 2048])
def test_histogram(dtype: torch.dtype, bins: int) -> None:
    actual, expected = histogram_state(bins), histogram_state(bins)
    batches = [ordinary((700,), dtype) * 1e-3, ordinary((700,), dtype).abs(), -ordinary((300,), dtype) * 30]
    for x in (torch.zeros(5, dtype=dtype), *batches, random_bits((300,), dtype), ordinary((0,), dtype)):
        ops.observe_histogram_(*actual, x)
        reference_search.observe_histogram_(*expected, x)
        assert_same_bits(actual, expected)
    for percentiles in ((0.0, 100.0), (0.01, 99.99), (20.0, 70.0)):
        assert_same_bits(
            ops.histogram_percentile(*actual[:2], *percentiles),
            reference_search.histogram_percentile(*actual[:2], *percentiles),
        )


def test_merged_histograms() -> None:
    for a, b in ((1e-3, 5.0), (5.0, 1e-3), (1.0, 1.0), (0.0, 1.0)):
        actual, other = histogram_state(), histogram_state()
        ops.observe_histogram_(*actual, ordinary((300,)) * a)
        ops.observe_histogram_(*other, ordinary((300,), seed=1) * b)
        expected = [t.clone() for t in actual]
        ops.merge_histogram_(*actual[:2], *other[:2])
        reference_search.merge_histogram_(*expected[:2], *other[:2])
        assert_same_bits(actual[:2], tuple(expected[:2]))


@pytest.mark.parametrize("grid", [GRIDS["uint8"], GRIDS["int16"], GRIDS["int4"]], ids=["uint8", "int16", "int4"])
def test_histogram_search(grid: tuple[int, int]) -> None:
    counts, range_, count = histogram_state(500)
    ops.observe_histogram_(counts, range_, count, ordinary((3000,)) ** 3)
    for symmetric in (True, False):
        args = (counts, range_, *grid, symmetric)
        assert_same_bits(ops.histogram_mse_range(*args), reference_search.histogram_mse_range(*args))


@dtypes
@granularities
def test_range_search(dtype: torch.dtype, g: Granularity) -> None:
    for x in inputs(dtype).values():
        for args in ((g.axis, g.group, -7, 7, True), (g.axis, g.group, 0, 15, False)):
            assert_same_bits(ops.mse_range(x, *args), reference_range.mse_range(x, *args))


@pytest.mark.parametrize("n", [1000, 1024, 1025, 70_000])
def test_range_search_over_blocks_and_chunks(n: int) -> None:
    x = ordinary((2, n)) ** 3
    for axis in (None, 0):
        assert_same_bits(ops.mse_range(x, axis, 0, -7, 7, True), reference_range.mse_range(x, axis, 0, -7, 7, True))


@pytest.mark.parametrize(("axis", "group"), [(None, 0), (0, 0), (1, 12), (-1, 20)], ids=str)
def test_weighted_range_search(axis: int | None, group: int) -> None:
    importance, symmetric, asymmetric = ordinary((60,)).abs(), (-7, 7, True), (0, 15, False)
    for x, weights, grid in (
        (ordinary((5, 60)) ** 3, importance, symmetric),
        (random_bits((5, 60), torch.float32), torch.zeros(60), asymmetric),
        (random_bits((5, 60), torch.bfloat16), importance, symmetric),
        (ordinary((60, 5), torch.float16).T, ordinary((120,)).exp()[::2] * 1e30, asymmetric),
        (ordinary((1, 60), torch.bfloat16).expand(4, 60), importance, asymmetric),
        (ordinary((0, 60)), importance, symmetric),
    ):
        args = (x, weights, axis, group, *grid)
        assert_same_bits(ops.weighted_mse_range(*args), reference_range.weighted_mse_range(*args))


@pytest.mark.parametrize(
    ("rows", "columns", "axis", "group"), [(2, 1000, 1, 200), (2, 1025, 0, 0), (1, 66_000, None, 0)], ids=str
)
def test_weighted_range_search_over_blocks_and_chunks(rows: int, columns: int, axis: int | None, group: int) -> None:
    x, importance = ordinary((rows, columns)) ** 3, ordinary((columns,), seed=1).square()
    args = (x, importance, axis, group, -7, 7, True)
    assert_same_bits(ops.weighted_mse_range(*args), reference_range.weighted_mse_range(*args))
