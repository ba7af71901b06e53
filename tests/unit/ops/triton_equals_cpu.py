# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the CPU kernels, bit for bit: on a GPU, or on the CPU in Triton's interpreter.

Not collected by itself, since the interpreter is chosen before Triton is imported: test_ops_triton.py runs it with
TRITON_INTERPRET=1, tests/e2e/test_gpu.py without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import (
    DTYPES,
    GRANULARITIES,
    GRIDS,
    INF,
    SHAPE,
    Granularity,
    assert_same_bits,
    by_name,
    calls,
    histogram_state,
    integer_for,
    observer_state,
    ordinary,
    other_calls,
    random_bits,
    scales_for,
    ties,
)
from torch import Tensor

from pyquant import ops
from pyquant.ops import cuda, reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
dtypes = pytest.mark.parametrize("dtype", by_name(DTYPES))
granularities = pytest.mark.parametrize("g", by_name(GRANULARITIES))
grids = pytest.mark.parametrize("grid", [GRIDS["int4"], GRIDS["uint8"], GRIDS["int16"]], ids=["int4", "uint8", "int16"])
SIZES = (0, 1, 33, 1024, 1025)


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """The interpreter is numpy, which warns of what is not finite and of overflow; both are tested here on purpose."""
    with np.errstate(all="ignore"):
        yield


def moved(value: Any) -> Any:
    return value.clone().to(DEVICE) if isinstance(value, Tensor) else value


def back(value: Any) -> Any:
    return tuple(v.cpu() for v in value) if isinstance(value, tuple) else value.cpu()


def same(name: str, *args: Any) -> Any:
    """One operator by its Triton kernel and by the CPU's: equal results, and equal arguments afterwards."""
    here = [a.clone() if isinstance(a, Tensor) else a for a in args]
    there = [moved(a) for a in args]
    expected = getattr(torch.ops.pyquant, name).default(*here)
    found = cuda.OPERATORS[name](*there)
    if expected is not None:
        assert_same_bits(back(found), expected)
    for a, b in zip(there, here, strict=True):
        if isinstance(a, Tensor):
            assert_same_bits(a.cpu(), b)
    return expected


def at_once(launch: cuda.Launch) -> cuda.Launch:
    """In the interpreter one program for all elements, since each program takes milliseconds there."""
    whole = 1 << (launch.arguments[0].numel() - 1).bit_length()
    if DEVICE == "cuda":
        return launch
    return replace(launch, programs=(1,), compiled=launch.compiled | {"block": whole})


def rounding_of_many(x: Tensor, scale: Tensor, zero_point: Tensor, grid: tuple[int, int]) -> None:
    """`rounding` of many elements, with one scale or one for each column."""
    axis = None if scale.dim() == 0 else 1
    args = (axis, 0, *grid)
    grad = random_bits(tuple(x.shape), x.dtype, 1)
    there = [moved(t) for t in (x, scale, zero_point)]
    for name, inputs, out, more in (
        ("fake_quantize", (), x, ()),
        ("fake_quantize_backward", (grad,), x, ()),
        ("quantize", (), torch.empty(x.shape, dtype=integer_for(grid)), (integer_for(grid),)),
    ):
        found = torch.empty_like(out, device=DEVICE)
        elements = (*(moved(t) for t in inputs), there[0], found)
        at_once(cuda.rounding(name, elements, *there, *args)).run()
        expected = getattr(torch.ops.pyquant, name).default(*inputs, x, scale, zero_point, *args, *more)
        assert_same_bits(found.cpu(), expected)


def rounding(x: Tensor, scale: Tensor, zero_point: Tensor, g: Granularity, grid: tuple[int, int]) -> None:
    args = (scale, zero_point, g.axis, g.group, *grid)
    same("fake_quantize", x, *args)
    same("fake_quantize_backward", random_bits(tuple(x.shape), x.dtype, 1), x, *args)
    same("quantize", x, *args, integer_for(grid))


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "transposed": random_bits(SHAPE[::-1], dtype).permute(2, 1, 0),
        "strided": ties((3, 10, 24), dtype, 0.05)[..., ::2],
        "expanded": random_bits((1, 10, 12), dtype).expand(SHAPE),
        "empty": ordinary((0, *SHAPE[1:]), dtype),
    }


def test_it_runs_where_it_should() -> None:
    import triton

    assert triton.knobs.runtime.interpret == (DEVICE == "cpu")


@dtypes
@granularities
def test_every_call(dtype: torch.dtype, g: Granularity) -> None:
    for call in [*calls(dtype, g), *other_calls()]:
        if call.name in cuda.OPERATORS:
            same(call.name, *call.args)


@dtypes
@granularities
@grids
def test_rounding(dtype: torch.dtype, g: Granularity, grid: tuple[int, int]) -> None:
    for x in inputs(dtype).values():
        rounding(x, *scales_for(x, g, grid), g, grid)


@dtypes
@granularities
def test_ranges(dtype: torch.dtype, g: Granularity) -> None:
    scales = () if g.axis is None else (SHAPE[g.axis],)
    for x in (*inputs(dtype).values(), torch.full(SHAPE, torch.nan, dtype=dtype), torch.full(SHAPE, -0.0, dtype=dtype)):
        same("minmax", x, g.axis, g.group)
        if g.group == 0 and not (scales and x.shape[g.axis] != scales[0]):
            same("observe_minmax_", *observer_state(scales), x, g.axis)
            started = (torch.full(scales, -0.5), torch.full(scales, 0.25), torch.tensor([7, 2]))
            same("observe_minmax_", *started, x, g.axis)
            same("observe_ema_", *started, x, g.axis, 0.9)


def all_patterns(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", by_name(DTYPES[1:]))
def test_every_number_of_16_bits(dtype: torch.dtype) -> None:
    x = all_patterns(dtype)
    for scale, zero_point, grid in (
        (0.05, 3, "int4"),
        (1.0, 128, "uint8"),
        (2.0**-149, 0, "int8"),
        (1e-40, -5, "int8"),
        (3.0e38, 0, "int16"),
        (2.0**-9, 100, "int16"),
        (1.5, 0, "int16"),  # whose products lie half way between two numbers of 16 bits
    ):
        rounding_of_many(x, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), GRIDS[grid])
    same("minmax", x, None, 0)
    same("minmax", x.reshape(256, 256), 0, 0)
    same("minmax", x.reshape(256, 256), 1, 0)
    same("minmax", x.reshape(256, 256), 1, 32)
    same("observe_histogram_", *histogram_state(2049), x)


@pytest.mark.parametrize("dtype", by_name(DTYPES))
def test_blocks_of_any_magnitude(dtype: torch.dtype) -> None:
    """Largest magnitudes from those whose reciprocal overflows to those that half precision just holds."""
    x = ordinary((60, 64), dtype)
    x = (x.float() * 2.0 ** torch.linspace(-140, 14, 60)[:, None].round()).to(dtype)
    x[:, ::7] = -x[:, ::7].abs()
    x[5], x[6, :40] = 0.0, -0.0
    x[7, 3] = x[7, 5] = 4 * x[7].abs().max()
    x[8, 3] = -(4 * x[8].abs().max())
    x[8, 9] = -x[8, 3]
    for bits in (4, 8):
        same("fake_quantize_blocks", x, bits)


def test_float32_near_ties_and_limits() -> None:
    tiny, huge = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    special = torch.tensor([0.0, -0.0, INF, -INF, torch.nan, tiny, -tiny, tiny / 4, -tiny / 4, 2.0**-149, huge, -huge])
    x = torch.cat((special, ties((5000,), torch.float32, 0.1), random_bits((20_000,), torch.float32)))
    for scale in (0.1, 1.0, 3.0, 2.0**-149, 1e-39, tiny, 1e38, huge):
        for zero_point, grid in ((0, "int8-symmetric"), (255, "uint8"), (-32767, "int16"), (32767, "int16")):
            rounding_of_many(x, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), GRIDS[grid])
    scale = random_bits((500,), torch.float32, 3).abs()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    values = random_bits((40, 500), torch.float32, 4)
    rounding_of_many(values, scale, torch.zeros(500, dtype=torch.int32), GRIDS["int8"])


@dtypes
def test_sizes(dtype: torch.dtype) -> None:
    one, grid = GRANULARITIES[0], GRIDS["int8"]
    for n in SIZES:
        x = random_bits((n,), dtype)
        rounding(x, torch.tensor(0.3), torch.tensor(5, dtype=torch.int32), one, grid)
        same("minmax", x, None, 0)
        same("minmax", x, 0, 0)
        same("observe_histogram_", *histogram_state(37), x)
    for n in (0, 1, 31, 32, 33):
        same("fake_quantize_blocks", ordinary((1, n * 32), dtype), 8)
    rounding(random_bits((3,), dtype)[1], torch.tensor(0.3), torch.tensor(5, dtype=torch.int32), one, grid)
    same("minmax", random_bits((3,), dtype)[1], None, 0)


@pytest.mark.parametrize("dtype", by_name(DTYPES[:2]))
@pytest.mark.parametrize(
    ("shape", "axis", "group"),
    [
        ((20_001,), None, 0),  # several chunks of one output
        ((2, 17_000), 0, 0),
        ((9000, 3), 1, 0),
        ((200, 70), 1, 0),  # more outputs than a program takes
        ((70, 200), 1, 0),
        ((5, 7, 1001), 1, 0),
        ((2, 96, 130), 1, 32),
        ((1, 5000, 3), 1, 2500),
        ((300, 64), 1, 16),
        ((6, 1, 1), 1, 1),
    ],
    ids=str,
)
def test_reductions_of_many_shapes(dtype: torch.dtype, shape: tuple[int, ...], axis: int | None, group: int) -> None:
    x = torch.where(random_bits(shape, torch.float16, 3) > 0, ordinary(shape, dtype), random_bits(shape, dtype, 5))
    same("minmax", x, axis, group)
    if group == 0:
        same("observe_minmax_", *observer_state(() if axis is None else (shape[axis],)), x, axis)


@dtypes
@pytest.mark.parametrize("bins", [2, 16, 2048])
def test_histograms_that_grow(dtype: torch.dtype, bins: int) -> None:
    batches = [ordinary((700,), dtype) * 1e-3, ordinary((7000,), dtype).abs(), -ordinary((300,), dtype) * 30]
    edges = torch.tensor([2.0**121, -(2.0**122), -(2.0**-149), 2.0**-149, 0.5, -0.5, 0.0, -0.0]).to(dtype)
    state = histogram_state(bins)
    for x in (torch.zeros(5, dtype=dtype), *batches, random_bits((3000,), dtype), ordinary((0,), dtype), edges):
        same("observe_histogram_", *state, x)
        ops.observe_histogram_(*state, x)  # the state that the next batch finds


def test_a_histogram_of_tiny_values() -> None:
    for x in ([-(2.0**-149)], [2.0**-149, -(2.0**-140)], [-0.0], [2.0**-126, -(2.0**-127)]):
        same("observe_histogram_", *histogram_state(16), torch.tensor(x))
        same("observe_histogram_", *histogram_state(16), torch.tensor([*x, 1.0]))


@dtypes
def test_numbers_of_elements_as_int64(dtype: torch.dtype) -> None:
    """What tensors of 2^30 elements and more take, on small ones."""
    x, grid = random_bits((7, 330), dtype), GRIDS["int8"]
    for g in (Granularity("tensor", None, 0), Granularity("channel", 0, 0), Granularity("group", 1, 30)):
        scale, zero_point = scales_for(x, g, grid)
        args = (g.axis, g.group, *grid)
        y = torch.empty_like(x)
        here = [moved(t) for t in (x, y, scale, zero_point)]
        launch = cuda.rounding("fake_quantize", tuple(here[:2]), here[0], *here[2:], *args)
        replace(launch, compiled=launch.compiled | {"wide": True}).run()
        assert_same_bits(here[1].cpu(), ops.fake_quantize(x, scale, zero_point, *args))
        launch, lo, hi, _ = cuda.reducing(here[0], g.axis, g.group)
        replace(launch, compiled=launch.compiled | {"wide": True}).run()
        for found, expected in zip((lo, hi), ops.minmax(x, g.axis, g.group), strict=True):
            assert_same_bits(found.cpu().reshape(expected.shape), expected)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Tensor, Granularity]:
    shape = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    axis = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    group = 0
    if axis is not None and draw(st.booleans()):
        group = draw(st.sampled_from([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
    order = draw(st.permutations(range(len(shape))))
    inner = tuple(shape[d] for d in order)
    make = draw(st.sampled_from([random_bits, ordinary]))
    x = make(inner, dtype, draw(st.integers(0, 99))).permute([order.index(d) for d in range(len(shape))])
    return x, Granularity("drawn", axis, group)


@settings(max_examples=25, deadline=None)
@given(tensors(), st.sampled_from(list(GRIDS.values())), st.integers(-140, 120), st.sampled_from([2, 5, 64]))
def test_any_tensor(case: tuple[Tensor, Granularity], grid: tuple[int, int], exponent: int, bins: int) -> None:
    x, g = case
    scale, zero_point = scales_for(x, g, grid)
    scale = scale * 2.0**exponent
    rounding(x, torch.where(scale > 0, scale, 1.0), zero_point, g, grid)
    same("minmax", x, g.axis, g.group)
    same("observe_histogram_", *histogram_state(bins), x)


def test_a_gradient_that_is_expanded() -> None:
    x, args = (
        random_bits((5, 6), torch.float32),
        (torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), None, 0, -8, 7),
    )
    found = cuda.fake_quantize_backward(*(moved(a) for a in (torch.tensor(2.0), x, *args)))
    assert_same_bits(found.cpu(), reference.fake_quantize_backward(torch.tensor(2.0).expand(5, 6), x, *args))
