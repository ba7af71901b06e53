# SPDX-License-Identifier: Apache-2.0
"""The operators in plain torch operations, for any device: the reference of the tests, and kernels of GPUs.

It equals the CPU kernels bit for bit. Histograms and searches are in reference_search.py; which
backends run these is in backends.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops.hadamard import check_hadamard
from pyquant.ops.int4 import check_packed
from pyquant.ops.minmax import check_momentum, check_observer
from pyquant.ops.qparams import check_bias, check_ranges
from pyquant.ops.quantize import check_integer_type

_TINY = torch.finfo(torch.float32).tiny


def round_half_away(v: Tensor) -> Tensor:
    """Nearest integer, halves away from zero. The difference to trunc(v) is exact."""
    whole = v.trunc()
    return whole + v.sign() * ((v - whole).abs() >= 0.5)


def wide(v: Tensor) -> Tensor:
    """float64; on the CPU where the device has none."""
    return v.cpu().double() if v.device.type == "mps" else v.double()


def spread(scale: Tensor, x: Tensor, axis: int | None, group: int) -> Tensor:
    """Scales (or zero points) in a shape that broadcasts with x."""
    if axis is None:
        return scale
    if group:
        return scale.repeat_interleave(group, dim=axis)
    return scale.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])


def split_groups(x: Tensor, axis: int, group: int) -> Tensor:
    """`axis` (counted from the front) as two: groups, and the elements of one."""
    return x.reshape([*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :]])


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    _checks.check_rounding("fake_quantize", x, scale, zero_point, axis, group, qmin, qmax)
    scale, zero_point = spread(scale, x, axis, group), spread(zero_point, x, axis, group).float()
    q = _clamped(round_half_away(x.float() / scale) + zero_point, qmin, qmax)
    return ((q - zero_point) * scale).to(x.dtype).contiguous()


def fake_quantize_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    _checks.check_rounding("fake_quantize_backward", x, scale, zero_point, axis, group, qmin, qmax)
    _checks.check_dtype("fake_quantize_backward", "grad", grad, x.dtype)
    scale, zero_point = spread(scale, x, axis, group), spread(zero_point, x, axis, group).float()
    q = round_half_away(x.float() / scale) + zero_point
    return torch.where((q >= qmin) & (q <= qmax), grad, torch.zeros_like(grad)).contiguous()


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    group: int,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    check_integer_type("quantize", dtype, qmin, qmax)
    _checks.check_rounding("quantize", x, scale, zero_point, axis, group, qmin, qmax)
    scale, zero_point = spread(scale, x, axis, group), spread(zero_point, x, axis, group).float()
    return _clamped(round_half_away(x.float() / scale) + zero_point, qmin, qmax).to(dtype).contiguous()


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int) -> Tensor:
    _checks.check_dtype("dequantize", "q", q, *_checks.INTEGERS)
    _checks.check_scales("dequantize", q, scale, zero_point, axis, group)
    _checks.check_values("dequantize", scale, zero_point)
    steps = q.int() - spread(zero_point, q, axis, group)
    return (steps.float() * spread(scale, q, axis, group)).contiguous()


def minmax(x: Tensor, axis: int | None, group: int) -> tuple[Tensor, Tensor]:
    _checks.check_dtype("minmax", "x", x, *_checks.FLOATS)
    shape = _checks.scale_shape("minmax", x, axis, group)
    if x.numel() == 0:
        return x.new_full(shape, torch.inf, dtype=torch.float32), x.new_full(shape, -torch.inf, dtype=torch.float32)
    values = x.float() + 0.0  # -0 becomes +0
    finite = torch.isfinite(values)
    dims = list(range(x.dim()))
    if axis is not None and group:
        at = axis % x.dim()
        finite, values = split_groups(finite, at, group), split_groups(values, at, group)
        dims = [at + 1]
    elif axis is not None:
        dims.remove(axis % x.dim())
    lo, hi = torch.where(finite, values, torch.inf), torch.where(finite, values, -torch.inf)
    return (lo.amin(dims), hi.amax(dims)) if dims else (lo, hi)


def observe_minmax_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None) -> None:
    check_observer("observe_minmax_", lo, hi, count, x, axis)
    low, high = minmax(x, axis, 0)
    lo.copy_(torch.minimum(lo, low.reshape(lo.shape)))
    hi.copy_(torch.maximum(hi, high.reshape(hi.shape)))
    count_elements_(count, x)


def observe_ema_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None, momentum: float) -> None:
    check_momentum("observe_ema_", momentum)
    check_observer("observe_ema_", lo, hi, count, x, axis)
    low, high = (t.reshape(lo.shape) for t in minmax(x, axis, 0))
    move_ema_(lo, hi, low, high, momentum)
    count_elements_(count, x)


def move_ema_(lo: Tensor, hi: Tensor, low: Tensor, high: Tensor, momentum: float) -> None:
    """Moves [lo, hi] toward the extent [low, high] of a batch."""
    first, none = lo > hi, low > high
    keep, add = (torch.tensor(v, dtype=torch.float32, device=lo.device) for v in (momentum, 1.0 - momentum))
    for state, batch in ((lo, low), (hi, high)):
        state.copy_(torch.where(none, state, torch.where(first, batch, keep * state + add * batch)))


def count_elements_(count: Tensor, x: Tensor) -> None:
    count[0] += x.numel()
    count[1] += (~torch.isfinite(x)).sum()


def choose_qparams(lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    check_ranges("choose_qparams", lo, hi, qmin, qmax, symmetric)
    zero = min(max(0, qmin), qmax)
    low, high = wide(lo).clamp(max=0.0), wide(hi).clamp(min=0.0)
    full = torch.maximum(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
    scale = full.float()
    bad = ~(torch.isfinite(lo) & torch.isfinite(hi) & (lo <= hi)).to(scale.device) | torch.isinf(scale)
    none = scale < _TINY
    scale = torch.where(bad, torch.nan, torch.where(none, 1.0, scale))
    zero_point = torch.full_like(scale, zero, dtype=torch.int32)
    if not symmetric:
        q = round_half_away(qmin - low / scale.double()).clamp(qmin, qmax)
        zero_point = torch.where(bad | none, zero, q.nan_to_num()).int()
    return scale.to(lo.device).contiguous(), zero_point.to(lo.device).contiguous()


def quantize_bias(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    check_bias("quantize_bias", bias, scale, bits)
    _checks.check_values("quantize_bias", scale)
    return _bias_integers(bias, scale, bits).to(bias.device).contiguous()


def fake_quantize_bias(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    check_bias("fake_quantize_bias", bias, scale, bits)
    _checks.check_values("fake_quantize_bias", scale)
    return (_bias_integers(bias, scale, bits).double() * wide(scale)).float().to(bias.device).contiguous()


def pack_int4(q: Tensor) -> Tensor:
    _checks.check_dtype("pack_int4", "q", q, torch.int8, torch.uint8)
    low, high = (-8, 7) if q.dtype == torch.int8 else (0, 15)
    if q.device.type == "cpu" and bool(((q < low) | (q > high)).any()):
        raise OpArgumentError(
            "pack_int4: q has values that need more than 4 bits; "
            f"expected {'-8 to 7 (int8)' if low else '0 to 15 (uint8)'}"
        )
    nibbles = torch.nn.functional.pad(q.flatten() & 15, (0, q.numel() % 2)).to(torch.uint8)
    return nibbles[0::2] | (nibbles[1::2] << 4)


def unpack_int4(packed: Tensor, numel: int, signed: bool) -> Tensor:
    check_packed("unpack_int4", packed, numel)
    nibbles = torch.stack((packed.flatten() & 15, packed.flatten() >> 4), dim=1).flatten()[:numel]
    return (nibbles ^ 8).to(torch.int8) - 8 if signed else nibbles.contiguous()


def _clamped(q: Tensor, qmin: int, qmax: int) -> Tensor:
    """q limited to the grid; NaN becomes qmin."""
    return torch.where(q > qmin, torch.where(q < qmax, q, qmax), qmin)


def _bias_integers(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    limit = 2.0 ** (bits - 1)
    q = round_half_away(wide(bias) / wide(scale))
    inside = (q > -limit) & (q < limit)
    whole = torch.where(inside, q, 0.0).long()
    outside = torch.where(q >= limit, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)))
    return torch.where(inside, whole, outside)


def hadamard_(x: Tensor, core: Tensor) -> None:
    check_hadamard("hadamard_", x, core)
    n, order = x.shape[-1], len(core)
    parts = x.reshape(-1, order)
    total = parts[:, :1] * core[0]
    for i in range(1, order):
        total = total + parts[:, i : i + 1] * core[i]
    while order < n:
        low, high = total.reshape(-1, 2, order).unbind(1)
        total = torch.cat((low + high, low - high), dim=1)
        order *= 2
    x.copy_(total.reshape(x.shape))
