# SPDX-License-Identifier: Apache-2.0
"""quantize, dequantize, packing of 4-bit integers, qparams of many channels, biases: against ATen and a plain copy."""

from __future__ import annotations

import torch

from benchmarks.rivals import Rivals, assert_near, rivals, values
from pyquant import ops

STEP = 0.05
SCALE, ZERO = torch.tensor(STEP), torch.tensor(3, dtype=torch.int32)


def quantized(x: torch.Tensor) -> Rivals:
    calls: Rivals = {
        "pyquant": lambda: ops.quantize(x, SCALE, ZERO, None, 0, -128, 127, torch.int8),
        "aten arithmetic": lambda: torch.round(x / STEP).add_(3).clamp_(-128, 127).to(torch.int8),
        "clone": x.clone,
    }
    own, other = calls["pyquant"](), calls["aten arithmetic"]()
    if x.dtype == torch.float32:
        assert_near(own, other, 1)
    else:  # ATen rounds the quotient to 16 bits first
        assert (own.int() - other.int()).abs().max() <= 1
    return calls


@rivals("pyquant", "aten arithmetic", "clone", short=True)
def bench_quantize(elements: int) -> Rivals:
    return quantized(values(elements))


@rivals("pyquant", "aten arithmetic", "clone")
def bench_quantize_float16(elements: int) -> Rivals:
    return quantized(values(elements, torch.float16))


@rivals("pyquant", "aten arithmetic", "clone")
def bench_dequantize(elements: int) -> Rivals:
    q = ops.quantize(values(elements), SCALE, ZERO, None, 0, -128, 127, torch.int8)
    like = torch.empty(elements)
    calls: Rivals = {
        "pyquant": lambda: ops.dequantize(q, SCALE, ZERO, None, 0),
        "aten arithmetic": lambda: (q.float() - 3).mul_(STEP),
        "clone": like.clone,
    }
    assert torch.allclose(calls["pyquant"](), calls["aten arithmetic"]())
    return calls


@rivals("pyquant", "aten arithmetic", "clone")
def bench_pack_int4(elements: int) -> Rivals:
    q = ops.quantize(values(elements), torch.tensor(0.5), ZERO, None, 0, -8, 7, torch.int8)
    calls: Rivals = {
        "pyquant": lambda: ops.pack_int4(q),
        "aten arithmetic": lambda: (q[0::2] & 15).bitwise_or_(q[1::2] << 4).view(torch.uint8),
        "clone": q.clone,
    }
    assert torch.equal(calls["pyquant"](), calls["aten arithmetic"]())
    return calls


@rivals("pyquant", "aten arithmetic", "clone")
def bench_unpack_int4(elements: int) -> Rivals:
    q = ops.quantize(values(elements), torch.tensor(0.5), ZERO, None, 0, -8, 7, torch.int8)
    packed = ops.pack_int4(q)
    calls: Rivals = {
        "pyquant": lambda: ops.unpack_int4(packed, elements, True),
        "aten arithmetic": lambda: (
            torch.stack((packed & 15, packed >> 4), 1).flatten().bitwise_xor_(8).to(torch.int8) - 8
        ),
        "clone": q.clone,
    }
    assert torch.equal(calls["pyquant"](), calls["aten arithmetic"]())
    return calls


@rivals("pyquant", "aten arithmetic", "clone", threads=(1,))
def bench_choose_qparams(elements: int) -> Rivals:
    lo, hi = -values(elements // 32).abs(), values(elements // 32).abs().add(0.1)

    def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
        low, high = lo.double().clamp(max=0), hi.double().clamp(min=0)
        scale = (high - low) / 255
        return scale.float(), (-128 - low / scale.float()).round().clamp(-128, 127).int()

    calls: Rivals = {
        "pyquant": lambda: ops.choose_qparams(lo, hi, -128, 127, False),
        "aten arithmetic": by_hand,
        "clone": lo.clone,
    }
    assert torch.equal(calls["pyquant"]()[0], by_hand()[0])
    return calls


@rivals("pyquant", "aten arithmetic", "clone", threads=(1,))
def bench_fake_quantize_bias(elements: int) -> Rivals:
    bias = values(elements // 256)
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize_bias(bias, SCALE, 32),
        "aten arithmetic": lambda: ((bias.double() / SCALE.double()).round() * SCALE.double()).float(),
        "clone": bias.clone,
    }
    assert torch.equal(calls["pyquant"](), calls["aten arithmetic"]())
    return calls
