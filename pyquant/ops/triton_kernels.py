# SPDX-License-Identifier: Apache-2.0
"""The loops of a few operators for NVIDIA GPUs, in Triton: rounding, extents, bins of a histogram, ggml's blocks.

It owns arithmetic on elements; shapes, checks and launches are cuda.py, which imports this file on the first call only.

Each kernel gives the bits of the CPU kernel of the same name. What could differ between a compiler for GPUs and C++
with contraction off, and why it does not:

- Division. `/` of float32 is `div.full.f32` in Triton, off by up to 2 ulp. All divisions here are `tl.div_rn`
  (`div.rn.f32`), the correctly rounded quotient of IEEE 754; no reciprocal stands in for one, but where the format
  itself says so (ggml's blocks).
- Contraction of `a * b + c` to one rounding. Launches pass `enable_fp_fusion=False`, which makes `mul.rn.f32` and
  `add.rn.f32` of PTX (which ptxas may not contract) and gives ptxas `--fmad=false`. One sum alone of a product could
  show it: `v * inverse + 8.5` of 4-bit blocks; the others add +0.
- Rounding half away from zero. `trunc(v + copysign(0.49999997, v))`, with the float32 below one half, is exact for
  |v| < 2^22 (csrc/kernels/pointwise.h): below a half the sum stays below the next integer, at a half it reaches it.
  Values are clamped to the grid first, whose ends are integers below 2^17, so clamping before and after rounding are
  one. No function of libdevice is needed, and the conversion to int32 (`cvt.rzi`) truncates.
- NaN. A comparison with NaN is false, and `where(v > lo, v, lo)` gives lo, as on the CPU. No minimum or maximum sees
  NaN: what is not finite, by its bits, is replaced before.
- -0. Adding +0 makes +0 of -0 and changes nothing else, and a compiler may not drop it without the licence to ignore
  signs of zeros. Extents add it first; rounded values last, since a compiler might make trunc(v) of float(int(v)).
- Subnormal numbers. Nothing is compiled with `.ftz`; `cvt.rn.f16.f32` rounds to float16 to nearest even.
- bfloat16 is read and written as integers, by shifts and the addition that rounds to nearest even, the formula of
  csrc/kernels/convert.h. So it does not depend on which GPUs have the instruction, nor on Triton's interpreter, whose
  conversion rounds ties up.
- Order. Minima and maxima without NaN and -0, and sums of integers, are the same in any order, atomic or not.

tests/unit/ops/test_ops_triton.py runs the kernels in Triton's interpreter against the CPU's, and reads what is said
here in the PTX for several GPUs.
"""

from __future__ import annotations

import triton
import triton.language as tl

_BELOW_HALF = tl.constexpr(0.4999999701976776)  # 0x1.fffffep-2
_INF_BITS = tl.constexpr(0x7F800000)
_LIMIT = tl.constexpr(2.0**120)  # kHistogramLimit of csrc/include/pyquant/kernels.h
_BELOW_ZERO = tl.constexpr(-(2.0**-126))


@triton.jit
def _float32(raw, bf16: tl.constexpr):
    """What was loaded, as float32: exact."""
    return (raw.to(tl.uint32) << 16).to(tl.float32, bitcast=True) if bf16 else raw.to(tl.float32)


@triton.jit
def _stored(v, bf16: tl.constexpr, kind: tl.constexpr):
    """float32 in the type `kind` of memory, to nearest even."""
    if bf16:
        u = v.to(tl.uint32, bitcast=True)
        rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        out = tl.where(v == v, rounded, 0x7FC0).to(tl.int16)
    else:
        out = v.to(kind)
    return out


@triton.jit
def _is_finite(v):
    return (v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) < _INF_BITS


@triton.jit
def _rounded(v):
    """The nearest int32, halves away from zero, for |v| < 2^22."""
    return (v + tl.where(v < 0.0, -_BELOW_HALF, _BELOW_HALF)).to(tl.int32)


@triton.jit
def _clamped(v, lo, hi):
    """v limited to [lo, hi]; NaN gives lo."""
    v = tl.where(v > lo, v, lo)
    return tl.where(v < hi, v, hi)


@triton.jit
def _steps(v, scale, least, most):
    """round(v / scale) limited to [least, most], as int32; NaN gives least."""
    return _rounded(_clamped(tl.div_rn(v, scale), least.to(tl.float32), most.to(tl.float32)))


@triton.jit
def _elements(n, wide: tl.constexpr, block: tl.constexpr):
    """Numbers of this program's elements, and which of them exist."""
    first = tl.program_id(0)
    if wide:
        first = first.to(tl.int64)
    at = first * block + tl.arange(0, block)
    return at, at < n


@triton.jit
def _qparams(scale, zero_point, at, mask, scales, span, inner, one: tl.constexpr):
    """Scale and zero point of each element; see Layout of cuda.py. `span` is run * inner."""
    if one:
        s, z = tl.load(scale), tl.load(zero_point)
    else:
        where = at // span % scales * inner + at % inner
        s, z = tl.load(scale + where, mask=mask, other=1.0), tl.load(zero_point + where, mask=mask, other=0)
    return s, z


@triton.jit
def fake_quantize(
    x,
    y,
    scale,
    zero_point,
    n,
    scales,
    span,
    inner,
    qmin,
    qmax,
    bf16: tl.constexpr,
    one: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """Y = (integer of x - zero_point) * scale, in y's type."""
    at, mask = _elements(n, wide, block)
    v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
    s, z = _qparams(scale, zero_point, at, mask, scales, span, inner, one)
    steps = _steps(v, s, qmin - z, qmax - z)
    tl.store(y + at, _stored(steps.to(tl.float32) * s + 0.0, bf16, y.dtype.element_ty), mask=mask)


@triton.jit
def quantize(
    x,
    q,
    scale,
    zero_point,
    n,
    scales,
    span,
    inner,
    qmin,
    qmax,
    bf16: tl.constexpr,
    one: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """Q = the integer of x, in q's type, which holds the grid."""
    at, mask = _elements(n, wide, block)
    v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
    s, z = _qparams(scale, zero_point, at, mask, scales, span, inner, one)
    steps = _steps(v, s, qmin - z, qmax - z)
    tl.store(q + at, (steps + z).to(q.dtype.element_ty), mask=mask)


@triton.jit
def fake_quantize_backward(
    grad,
    x,
    dx,
    scale,
    zero_point,
    n,
    scales,
    span,
    inner,
    qmin,
    qmax,
    bf16: tl.constexpr,
    one: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """Dx = grad, its bits, where x rounds onto the grid without clamping, else 0."""
    at, mask = _elements(n, wide, block)
    v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
    s, z = _qparams(scale, zero_point, at, mask, scales, span, inner, one)
    # One step of room on both sides separates clamped values from those on the last integer; NaN is outside.
    least, most = qmin - z, qmax - z
    steps = _steps(v, s, least - 1, most + 1)
    kept = (steps >= least) & (steps <= most)
    dy = tl.load(grad + at, mask=mask, other=0)
    tl.store(dx + at, tl.where(kept, dy, tl.zeros_like(dy)), mask=mask)


@triton.jit
def extent(
    x,
    lo,
    hi,
    nonfinite,
    scales,
    run,
    inner,
    outputs,
    count,
    chunk,
    bf16: tl.constexpr,
    adjacent: tl.constexpr,
    wide: tl.constexpr,
    width: tl.constexpr,
    length: tl.constexpr,
):
    """The extent of the finite values of each output, and how many values are not finite.

    Program (p, c) takes outputs [p * width, (p + 1) * width) over the elements [c * chunk, (c + 1) * chunk) of the
    `count` that each has. lo and hi are (chunks, outputs), nonfinite (chunks, programs). adjacent: the elements of
    an output are next to each other. See Layout of cuda.py.
    """
    program, part = tl.program_id(0), tl.program_id(1)
    wide_program, wide_part = program, part
    if wide:
        wide_program, wide_part = program.to(tl.int64), part.to(tl.int64)
    j = wide_program * width + tl.arange(0, width)
    low = tl.full([width, length], float("inf"), tl.float32)
    high = tl.full([width, length], float("-inf"), tl.float32)
    bad = tl.zeros([width, length], tl.int32)
    begin = wide_part * chunk
    end = tl.minimum(begin + chunk, count)
    for start in range(begin, end, length):
        i = start + tl.arange(0, length)
        if adjacent:
            at = j[:, None] * count + i[None, :]
        else:
            rows = (i // run * scales)[None, :] + (j // inner)[:, None]
            at = (rows * run + (i % run)[None, :]) * inner + (j % inner)[:, None]
        mask = (j < outputs)[:, None] & (i < end)[None, :]
        v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
        finite = _is_finite(v)
        v += 0.0
        low = tl.minimum(low, tl.where(finite & mask, v, float("inf")))
        high = tl.maximum(high, tl.where(finite & mask, v, float("-inf")))
        bad += tl.where(finite, 0, 1)  # what does not exist was loaded as 0
    place = wide_part * outputs + j
    tl.store(lo + place, tl.min(low, axis=1), mask=j < outputs)
    tl.store(hi + place, tl.max(high, axis=1), mask=j < outputs)
    tl.store(nonfinite + part * tl.num_programs(0) + program, tl.sum(tl.sum(bad, axis=1), axis=0))


@triton.jit
def count_values(
    x,
    counters,
    n,
    inverse,
    first,
    bins,
    tables,
    bf16: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """Counts the finite values of x in one of `tables` tables of `bins` int32 counters, which the programs share.

    A value lies in bin floor(v * inverse) - first; inverse is a power of two, so the product is exact unless it
    underflows, and a negative one that underflows to 0 still lies below 0.
    """
    at, mask = _elements(n, wide, block)
    v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
    finite = _is_finite(v)
    v = _clamped(tl.where(finite, v, 0.0), -_LIMIT, _LIMIT)
    t = v * inverse
    most = tl.where(v < 0.0, _BELOW_ZERO, t)
    t = tl.where(most < t, most, t)
    bin = t.to(tl.int32)
    bin -= tl.where(bin.to(tl.float32) > t, 1, 0)
    table = tl.program_id(0) % tables * bins
    tl.atomic_add(counters + table + (bin - first), 1, mask=mask & finite, sem="relaxed")


@triton.jit
def fake_quantize_blocks(x, y, blocks, bits: tl.constexpr, bf16: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """y = the values of ggml's blocks of x: 32 neighbours with a scale in half precision (csrc/kernels/blocks.cc)."""
    number, exists = _elements(blocks, wide, block)
    lane = tl.arange(0, 32)[None, :]
    at, mask = number[:, None] * 32 + lane, exists[:, None]
    v = _float32(tl.load(x + at, mask=mask, other=0), bf16)
    word = v.to(tl.int32, bitcast=True)
    magnitude = word & 0x7FFFFFFF
    most = tl.max(magnitude, axis=1)[:, None]
    if bits == 4:  # the first value of the largest magnitude becomes -8 steps
        first = tl.min(tl.where(magnitude == most, lane, 32), axis=1)[:, None]
        d = tl.sum(tl.where(lane == first, word, 0), axis=1)[:, None].to(tl.float32, bitcast=True)
        d = tl.div_rn(tl.where(most > 0, d, 0.0), tl.full([block, 1], -8.0, tl.float32))
    else:
        d = tl.div_rn(most.to(tl.float32, bitcast=True), tl.full([block, 1], 127.0, tl.float32))
    inverse = tl.div_rn(tl.full([block, 1], 1.0, tl.float32), d)
    scaled = v * tl.where(_is_finite(inverse), inverse, 0.0)
    q = _clamped(scaled + 8.5, 0.0, 15.0).to(tl.int32) - 8 if bits == 4 else _rounded(_clamped(scaled, -127.0, 127.0))
    out = q.to(tl.float32) * d.to(tl.float16).to(tl.float32) + 0.0  # the scale may be negative: never -0
    tl.store(y + at, _stored(out, bf16, y.dtype.element_ty), mask=mask)
