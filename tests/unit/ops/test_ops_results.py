# SPDX-License-Identifier: Apache-2.0
"""The tensors that operators return: contiguous, of x's shape whatever its rank and strides, also where they are so
large that the system is asked for large pages."""

from __future__ import annotations

import pytest
import torch

from pyquant import ops

SCALE, ZERO = torch.tensor(0.5), torch.tensor(0, dtype=torch.int32)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 8 + (3,), (2,) * 12, (5, 7)], ids=str)
def test_shape_and_strides(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for value in (x, x.mT if x.dim() > 1 else x, x.bfloat16()):
        y = ops.fake_quantize(value, SCALE, ZERO, None, 0, -8, 7)
        q = ops.quantize(value, SCALE, ZERO, None, 0, -8, 7, torch.int8)
        for out in (y, q, ops.dequantize(q, SCALE, ZERO, None, 0)):
            like = torch.empty(value.shape)
            assert out.shape == value.shape
            assert out.stride() == like.stride()
            assert out.device == value.device
        assert (y.dtype, q.dtype) == (value.dtype, torch.int8)
        assert torch.equal(y.float(), q.float() * 0.5)


def test_a_result_of_large_pages_is_as_any_other() -> None:
    x = torch.arange(-(1 << 20), (1 << 23) + 77, dtype=torch.float32) / 1000  # 36 MiB, no multiple of a page
    y = ops.fake_quantize(x, SCALE, ZERO, None, 0, -32768, 32767)
    parts = [ops.fake_quantize(part, SCALE, ZERO, None, 0, -32768, 32767) for part in x.split(1 << 20)]
    assert torch.equal(y, torch.cat(parts))
    y.add_(1)
    assert torch.equal(y, torch.cat(parts) + 1)
