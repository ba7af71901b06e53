# SPDX-License-Identifier: Apache-2.0
"""Laws of the rounding operators: idempotence, error, order, zero, channels and groups as separate tensors, packing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyquant import ops

GRIDS = st.sampled_from([(-8, 7), (0, 15), (-127, 127), (-128, 127), (0, 255), (-32767, 32767)])
ANY_FLOATS = st.lists(st.floats(width=32), min_size=0, max_size=80).map(lambda v: torch.tensor(v, dtype=torch.float32))
MODERATE = st.floats(-1e6, 1e6, width=32)
SCALES = st.floats(2.0**-20, 2.0**14, width=32)
laws = settings(max_examples=60, deadline=None)


@st.composite
def qparams(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    qmin, qmax = draw(GRIDS)
    scale = torch.tensor(draw(SCALES), dtype=torch.float32)
    return scale, torch.tensor(draw(st.integers(qmin, qmax)), dtype=torch.int32), qmin, qmax


@laws
@given(ANY_FLOATS, qparams())
def test_fake_quantize_is_idempotent_and_sorted(x: Tensor, q: tuple[Tensor, Tensor, int, int]) -> None:
    scale, zero_point, qmin, qmax = q
    y = ops.fake_quantize(x, scale, zero_point, None, 0, qmin, qmax)
    assert torch.equal(ops.fake_quantize(y, scale, zero_point, None, 0, qmin, qmax), y)
    order = x.nan_to_num(nan=-torch.inf).argsort()
    assert (y[order].diff() >= 0).all()


@laws
@given(ANY_FLOATS, qparams())
def test_fake_quantize_is_dequantize_of_quantize(x: Tensor, q: tuple[Tensor, Tensor, int, int]) -> None:
    scale, zero_point, qmin, qmax = q
    dtype = torch.int16 if qmax > 255 else torch.int8 if qmin < 0 else torch.uint8
    integers = ops.quantize(x, scale, zero_point, None, 0, qmin, qmax, dtype)
    back = ops.dequantize(integers, scale, zero_point, None, 0)
    assert torch.equal(back, ops.fake_quantize(x, scale, zero_point, None, 0, qmin, qmax))
    assert torch.equal(ops.quantize(back, scale, zero_point, None, 0, qmin, qmax, dtype), integers)


@laws
@given(st.lists(MODERATE, min_size=1, max_size=60), GRIDS, st.booleans())
def test_a_chosen_range_is_covered_within_half_a_step(
    values: list[float], grid: tuple[int, int], symmetric: bool
) -> None:
    qmin, qmax = grid
    symmetric = symmetric and qmin < 0
    if symmetric:
        qmin = -qmax
    x = torch.tensor(values, dtype=torch.float32)
    scale, zero_point = ops.choose_qparams(*ops.minmax(x), qmin, qmax, symmetric)
    y = ops.fake_quantize(x, scale, zero_point, None, 0, qmin, qmax)
    if x.any() and float(x.abs().max()) > 1e-30:
        # Half a step, another half where the zero point was rounded at an end of the range, and float32's own rounding.
        assert (y.double() - x.double()).abs().max() <= 1.001 * scale.double()
        inside = (y > y.min()) & (y < y.max())
        assert ((y.double() - x.double()).abs()[inside] <= 0.501 * scale.double()).all()
    zero = ops.fake_quantize(torch.zeros(1), scale, zero_point, None, 0, qmin, qmax)
    assert zero.item() == 0.0


@laws
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31), st.data())
def test_channels_are_separate_tensors(a: int, b: int, c: int, seed: int, data: st.DataObject) -> None:
    x = torch.randn((a, b, c), generator=torch.Generator().manual_seed(seed))
    axis = data.draw(st.integers(-3, 2))
    lo, hi = ops.minmax(x, axis)
    scale, zero_point = ops.choose_qparams(lo, hi, 0, 255, False)
    y = ops.fake_quantize(x, scale, zero_point, axis, 0, 0, 255)
    for channel in range(x.shape[axis]):
        one, s, z = x.select(axis, channel), scale[channel], zero_point[channel]
        assert torch.equal(y.select(axis, channel), ops.fake_quantize(one, s, z, None, 0, 0, 255))
        assert (lo[channel], hi[channel]) == tuple(ops.minmax(one))
    order = torch.randperm(x.shape[axis], generator=torch.Generator().manual_seed(seed))
    moved = ops.fake_quantize(x.index_select(axis, order), scale[order], zero_point[order], axis, 0, 0, 255)
    assert torch.equal(moved, y.index_select(axis, order))


@laws
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31))
def test_groups_are_channels_of_a_view(a: int, groups: int, size: int, c: int, seed: int) -> None:
    x = torch.randn((a, groups * size, c), generator=torch.Generator().manual_seed(seed))
    lo, hi = ops.minmax(x, 1, size)
    scale, zero_point = ops.choose_qparams(lo, hi, -8, 7, False)
    y = ops.fake_quantize(x, scale, zero_point, 1, size, -8, 7)
    for i in range(a):
        for g in range(groups):
            part = slice(g * size, (g + 1) * size)
            expected = ops.fake_quantize(x[i, part], scale[i, g], zero_point[i, g], 1, 0, -8, 7)
            assert torch.equal(y[i, part], expected)


@laws
@given(st.lists(st.integers(-8, 7), max_size=70), st.booleans())
def test_packing_is_undone(values: list[int], signed: bool) -> None:
    q = torch.tensor(values, dtype=torch.int8)
    q = q if signed else (q + 8).to(torch.uint8)
    packed = ops.pack_int4(q)
    assert packed.numel() == (q.numel() + 1) // 2
    assert torch.equal(ops.unpack_int4(packed, q.numel(), signed), q)
