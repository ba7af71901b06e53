# SPDX-License-Identifier: Apache-2.0
"""ggml's block formats: the rule by numpy, the bytes, native against reference on every instruction set, gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ops_cases import DTYPES, ISAS, assert_same_bits, by_name, ordinary
from torch import Tensor

from pyquant import ops
from pyquant.errors import OpArgumentError
from pyquant.ops import reference_blocks
from pyquant.ops.blocks import LENGTH, block_bytes

BITS = pytest.mark.parametrize("bits", [4, 8], ids=["q4_0", "q8_0"])
dtypes = pytest.mark.parametrize("dtype", by_name(DTYPES))
LARGEST = {4: 8 * 65504.0, 8: 127 * 65504.0}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.ops.pyquant._isa(-1)
    if torch.ops.pyquant._isa(ISAS.index(request.param)) != ISAS.index(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    torch.ops.pyquant._isa(before)


def hard(dtype: torch.dtype) -> Tensor:
    """Blocks of all sizes: ordinary, tiny, subnormal, large, zero, one value, two equal magnitudes of unlike sign."""
    rows = [ordinary((2, LENGTH), seed=i) * size for i, size in enumerate((1.0, 1e-4, 1e-7, 1e-39, 1e3))]
    special = torch.zeros(4, LENGTH)
    special[1, 5], special[2, 0], special[2, 31], special[3, 7], special[3, 9] = -3.0, 2.0, -2.0, -2.0, 2.0
    return torch.cat([*rows, special]).to(dtype)


def by_the_rule(block: np.ndarray, bits: int) -> bytes:
    """One block, value by value, in ggml's own order and precision."""
    most = np.float32(0)
    signed = np.float32(0)
    for value in block:
        if abs(value) > most:
            most, signed = abs(value), value
    with np.errstate(over="ignore", divide="ignore"):
        d = signed / np.float32(-8) if bits == 4 else most / np.float32(127)
        inverse = np.float32(1) / d if d != 0 and np.isfinite(np.float32(1) / d) else np.float32(0)
    scaled = [np.float32(value * inverse) for value in block]
    if bits == 8:
        q = [int(np.trunc(v + np.copysign(np.float64(0.5), v))) & 255 for v in map(np.float64, scaled)]
    else:
        q = [min(15, int(v + np.float32(8.5))) for v in scaled]
        q = [low | high << 4 for low, high in zip(q[:16], q[16:], strict=True)]
    return np.float16(d).tobytes() + bytes(q)


@BITS
@dtypes
def test_the_bytes_are_ggmls(isa: str, dtype: torch.dtype, bits: int) -> None:
    x = hard(dtype)
    packed = ops.quantize_blocks(x, bits)
    for row, block in zip(packed, x.float().numpy(), strict=True):
        assert bytes(row.tolist()) == by_the_rule(block, bits)


@BITS
@dtypes
def test_native_equals_reference(isa: str, dtype: torch.dtype, bits: int) -> None:
    for x in (hard(dtype), ordinary((3, 5, 96), dtype), ordinary((2, 0, 32), dtype), ordinary((4, 64), dtype).T.T):
        packed = ops.quantize_blocks(x, bits)
        assert packed.shape == (*x.shape[:-1], x.shape[-1] // LENGTH * block_bytes(bits))
        assert_same_bits(packed, reference_blocks.quantize_blocks(x, bits))
        assert_same_bits(ops.dequantize_blocks(packed, bits), reference_blocks.dequantize_blocks(packed, bits))
        assert_same_bits(ops.fake_quantize_blocks(x, bits), reference_blocks.fake_quantize_blocks(x, bits))
        assert_same_bits(ops.fake_quantize_blocks(x, bits), ops.dequantize_blocks(packed, bits).to(dtype))


@BITS
def test_a_view_is_read_as_it_is_seen(bits: int) -> None:
    x = ordinary((64, 96))
    assert_same_bits(ops.quantize_blocks(x.T[:, :32], bits), ops.quantize_blocks(x.T[:, :32].contiguous(), bits))


@BITS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e9])
def test_what_no_block_holds_is_refused(bits: int, value: float) -> None:
    x = torch.zeros(2, 64)
    x[1, 40] = value
    for call in (ops.quantize_blocks, ops.fake_quantize_blocks, reference_blocks.quantize_blocks):
        with pytest.raises(OpArgumentError, match="NaN, Inf, or a value too large for the half-precision scale"):
            call(x, bits)
    x[1, 40] = LARGEST[bits]
    assert float(ops.fake_quantize_blocks(x, bits)[1, 40]) == LARGEST[bits]


@BITS
def test_gradient_passes_unchanged(bits: int) -> None:
    x = ordinary((2, 32)).requires_grad_()
    upstream = ordinary((2, 32), seed=1)
    ops.fake_quantize_blocks(x, bits).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream)
    assert not ops.quantize_blocks(x, bits).requires_grad
