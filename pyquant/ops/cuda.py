# SPDX-License-Identifier: Apache-2.0
"""The operators that have a Triton kernel: arguments are checked, the kernel is launched, results have the CPU's bits.

It owns launches: shapes, sizes of blocks, what is compiled in. The arithmetic is triton_kernels.py, which needs Triton
and is imported by the first launch; which backend takes these functions is backends.py. They take tensors of any
device that Triton reaches: NVIDIA GPUs, and in its interpreter (TRITON_INTERPRET=1) the CPU, for tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops.blocks import LENGTH, check_blocks
from pyquant.ops.histogram import check_histogram
from pyquant.ops.minmax import check_momentum, check_observer
from pyquant.ops.quantize import check_integer_type
from pyquant.ops.reference import move_ema_
from pyquant.ops.reference_search import LEAST, Bins, grow_

_BLOCK = 1024  # elements of a program
#: of every launch: multiplications and additions are not contracted (see triton_kernels.py)
OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": False}
_PROGRAMS = 1024  # what a reduction is split into at most: several for each processor of today's GPUs
_CHUNK = 16  # tiles that a program of a reduction takes at least
_TABLES = 64  # of counters, so that programs that count equal values do not all wait for one
_COUNTERS = 1 << 22  # of all tables together at most
_INT32 = 1 << 30  # numbers of elements are int32 below it


@dataclass(frozen=True)
class Launch:
    """A kernel of triton_kernels.py with its arguments; `compiled` are those that are compiled in.

    One value for all that can be done with it: run on a GPU, in the interpreter, or compiled and read by a test.
    """

    kernel: str
    programs: tuple[int, ...]
    arguments: tuple[Tensor | int | float, ...]
    compiled: dict[str, int | bool]

    def function(self) -> Any:
        """The kernel. Imports Triton."""
        return getattr(importlib.import_module("pyquant.ops.triton_kernels"), self.kernel)

    def run(self) -> None:
        """On the device of the tensors."""
        device = next(a.device for a in self.arguments if isinstance(a, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.function()[self.programs](*self.arguments, **self.compiled, **OPTIONS)


class Layout(NamedTuple):
    """A contiguous tensor as (outer, scales, run, inner); element (o, s, r, k) has scale number s * inner + k."""

    outer: int
    scales: int
    run: int
    inner: int

    @classmethod
    def of(cls, x: Tensor, axis: int | None, group: int) -> Layout:
        """x and its granularity, which are checked already."""
        if axis is None:
            return cls(1, 1, x.numel(), 1)
        at = axis % x.dim()
        before, after = torch.Size(x.shape[:at]).numel(), torch.Size(x.shape[at + 1 :]).numel()
        if group:
            return cls(1, before * (x.shape[at] // group), group, after)
        return cls(before, x.shape[at], after, 1)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    _checks.check_rounding("fake_quantize", x, scale, zero_point, axis, group, qmin, qmax)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(rounding("fake_quantize", (x, y), x, scale, zero_point, axis, group, qmin, qmax))
    return y


def fake_quantize_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int
) -> Tensor:
    op = "fake_quantize_backward"
    _checks.check_rounding(op, x, scale, zero_point, axis, group, qmin, qmax)
    _checks.check_dtype(op, "grad", grad, x.dtype)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(rounding(op, (grad.expand(x.shape), x, dx), x, scale, zero_point, axis, group, qmin, qmax))
    return dx


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
    q = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    _run(rounding("quantize", (x, q), x, scale, zero_point, axis, group, qmin, qmax))
    return q


def minmax(x: Tensor, axis: int | None, group: int) -> tuple[Tensor, Tensor]:
    _checks.check_dtype("minmax", "x", x, *_checks.FLOATS)
    shape = _checks.scale_shape("minmax", x, axis, group)
    lo, hi, _ = _extent(x, axis, group)
    return lo.reshape(shape), hi.reshape(shape)


def observe_minmax_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None) -> None:
    check_observer("observe_minmax_", lo, hi, count, x, axis)
    low, high, nonfinite = _extent(x, axis, 0)
    lo.copy_(torch.minimum(lo, low.reshape(lo.shape)))
    hi.copy_(torch.maximum(hi, high.reshape(hi.shape)))
    _count_(count, x, nonfinite)


def observe_ema_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None, momentum: float) -> None:
    check_momentum("observe_ema_", momentum)
    check_observer("observe_ema_", lo, hi, count, x, axis)
    low, high, nonfinite = _extent(x, axis, 0)
    move_ema_(lo, hi, low.reshape(lo.shape), high.reshape(hi.shape), momentum)
    _count_(count, x, nonfinite)


def observe_histogram_(counts: Tensor, range: Tensor, count: Tensor, x: Tensor) -> None:
    """Where the bins are is computed on the host, as in reference_search.py; the values stay on the device."""
    op = "observe_histogram_"
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    check_histogram(op, counts, range)
    _checks.check_state(op, "count", count, torch.int64, 2)
    old = Bins.read(op, range, counts.numel())
    x = x.contiguous()
    low, high, nonfinite = _extent(x, None, 0)
    lo, hi = torch.cat((low, high)).tolist()
    if lo <= hi:
        where = grow_(counts, range, old, lo, hi, LEAST)
        launch, counters = counting(x, where, counts.numel())
        launch.run()
        counts += counters.sum(0, dtype=torch.int64).reshape(counts.shape)
    _count_(count, x, nonfinite)


def fake_quantize_blocks(x: Tensor, bits: int) -> Tensor:
    check_blocks("fake_quantize_blocks", "x", x, LENGTH, bits)
    _checks.check_dtype("fake_quantize_blocks", "x", x, *_checks.FLOATS)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(simulating_blocks(x, y, bits))
    return y


#: What is faster than the same in torch operations (reference.py), which makes ten passes over memory of one.
OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        fake_quantize,
        fake_quantize_backward,
        quantize,
        minmax,
        observe_minmax_,
        observe_ema_,
        observe_histogram_,
        fake_quantize_blocks,
    )
}


def rounding(
    kernel: str,
    elements: tuple[Tensor, ...],
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    group: int,
    qmin: int,
    qmax: int,
) -> Launch:
    """The launch of a kernel that takes `elements`, tensors of x's shape of which the last is written."""
    layout, n = Layout.of(x, axis, group), x.numel()
    return Launch(
        kernel,
        (-(-n // _BLOCK),),
        (
            *(_words(t) for t in elements),
            scale.contiguous(),
            zero_point.contiguous(),
            n,
            layout.scales,
            layout.run * layout.inner,
            layout.inner,
            qmin,
            qmax,
        ),
        {"bf16": _is_bf16(x), "one": axis is None, "wide": n >= _INT32, "block": _BLOCK},
    )


def reducing(x: Tensor, axis: int | None, group: int) -> tuple[Launch, Tensor, Tensor, Tensor]:
    """The launch of `extent`, and what it writes: lo and hi (chunks, outputs), non-finite values (chunks, programs)."""
    layout = Layout.of(x, axis, group)
    outputs, each = layout.scales * layout.inner, layout.outer * layout.run
    # A tile lies along what is next to each other in memory.
    if layout.inner == 1 and layout.run > 1:
        length = min(_BLOCK, _power_of_two(each))
        width = min(_BLOCK // length, _power_of_two(outputs))
    else:
        width = min(128, _power_of_two(outputs))
        length = min(_BLOCK // width, _power_of_two(each))
    programs = -(-outputs // width)
    most = max(1, min(_PROGRAMS // programs, -(-each // (_CHUNK * length))))
    chunk = -(-each // (most * length)) * length
    chunks = -(-each // chunk)
    lo, hi = (torch.empty(chunks, outputs, dtype=torch.float32, device=x.device) for _ in range(2))
    nonfinite = torch.empty(chunks, programs, dtype=torch.int32, device=x.device)
    launch = Launch(
        "extent",
        (programs, chunks),
        (_words(x), lo, hi, nonfinite, layout.scales, layout.run, layout.inner, outputs, each, chunk),
        {
            "bf16": _is_bf16(x),
            "adjacent": layout.outer == 1 and layout.inner == 1,
            "wide": x.numel() >= _INT32,
            "width": width,
            "length": length,
        },
    )
    return launch, lo, hi, nonfinite


def counting(x: Tensor, where: Bins, bins: int) -> tuple[Launch, Tensor]:
    """The launch of `count_values`, and the counters that it adds to: int32 (tables, bins)."""
    n = x.numel()
    programs = -(-n // _BLOCK)
    tables = max(1, min(_TABLES, programs, _COUNTERS // bins))
    counters = torch.zeros(tables, bins, dtype=torch.int32, device=x.device)
    arguments = (_words(x), counters, n, 2.0**-where.exponent, where.first, bins, tables)
    return Launch(
        "count_values", (programs,), arguments, {"bf16": _is_bf16(x), "wide": n >= _INT32, "block": _BLOCK}
    ), counters


def simulating_blocks(x: Tensor, y: Tensor, bits: int) -> Launch:
    blocks, each = x.numel() // LENGTH, _BLOCK // LENGTH
    compiled = {"bits": bits, "bf16": _is_bf16(x), "wide": x.numel() >= _INT32, "block": each}
    return Launch("fake_quantize_blocks", (-(-blocks // each),), (_words(x), _words(y), blocks), compiled)


def _extent(x: Tensor, axis: int | None, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """lo and hi of each scale, (n,), and the number of non-finite values, int64 ()."""
    if x.numel() == 0:
        n = torch.Size(_checks.scale_shape("minmax", x, axis, group)).numel()
        lo = torch.full((n,), torch.inf, dtype=torch.float32, device=x.device)
        return lo, -lo, torch.zeros((), dtype=torch.int64, device=x.device)
    launch, lo, hi, nonfinite = reducing(x, axis, group)
    launch.run()
    if len(lo) == 1:
        return lo[0], hi[0], nonfinite.sum()
    return lo.amin(0), hi.amax(0), nonfinite.sum()


def _count_(count: Tensor, x: Tensor, nonfinite: Tensor) -> None:
    count[0] += x.numel()
    count[1] += nonfinite


def _run(launch: Launch) -> None:
    if launch.programs[0]:
        launch.run()


def _words(t: Tensor) -> Tensor:
    """Contiguous, bfloat16 as the integers that the kernels take."""
    t = t.contiguous()
    return t.view(torch.int16) if t.dtype == torch.bfloat16 else t


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _power_of_two(n: int) -> int:
    """The least that is not smaller than n."""
    return 1 << (n - 1).bit_length()
