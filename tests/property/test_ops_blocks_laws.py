# SPDX-License-Identifier: Apache-2.0
"""Laws of ggml's block formats: idempotence, error bounds, scaling by powers of two, blocks apart from each other."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyquant import ops

BITS = st.sampled_from([4, 8])
VALUES = st.lists(st.floats(-1e5, 1e5, width=32), min_size=32, max_size=32)
BLOCKS = st.lists(VALUES, min_size=1, max_size=3).map(lambda rows: torch.tensor(rows, dtype=torch.float32))
laws = settings(max_examples=60, deadline=None)


@laws
@given(BLOCKS, BITS)
def test_going_there_twice_changes_nothing(x: Tensor, bits: int) -> None:
    once = ops.fake_quantize_blocks(x, bits)
    assert torch.equal(ops.fake_quantize_blocks(once, bits), once)
    assert torch.equal(ops.dequantize_blocks(ops.quantize_blocks(x, bits), bits), once)


@laws
@given(BLOCKS, BITS)
def test_error_is_bounded_by_the_step_and_the_half_precision_of_the_scale(x: Tensor, bits: int) -> None:
    y, most = ops.fake_quantize_blocks(x, bits), x.abs().amax(-1, keepdim=True)
    step = most / (8 if bits == 4 else 127)
    tail = step if bits == 4 else 0.5 * step  # the side away from the largest value has 7 steps, not 8
    assert ((y - x).abs() <= tail * 1.001 + most * 2.0**-11 + 127 * 2.0**-24).all()


@laws
@given(BLOCKS, BITS, st.integers(-3, 3))
def test_powers_of_two_scale_through(x: Tensor, bits: int, power: int) -> None:
    x = x.clamp(-6e4, 6e4)  # eight times as much still has a scale in half precision
    x = torch.where(x.abs() < 1e-2, 0.0, x)  # nor does one get subnormal there
    x = torch.where(x.abs().amax(-1, keepdim=True) < 8, 0.0, x)
    factor = 2.0**power
    assert torch.equal(ops.fake_quantize_blocks(x * factor, bits), ops.fake_quantize_blocks(x, bits) * factor)


@laws
@given(BLOCKS, BITS)
def test_each_block_is_alone(x: Tensor, bits: int) -> None:
    rows = [ops.quantize_blocks(row, bits) for row in x]
    assert torch.equal(ops.quantize_blocks(x, bits), torch.stack(rows))
    assert torch.equal(ops.quantize_blocks(x.reshape(-1), bits), torch.cat(rows))
    assert torch.equal(ops.fake_quantize_blocks(-x, 8), -ops.fake_quantize_blocks(x, 8))
