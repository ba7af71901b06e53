# SPDX-License-Identifier: Apache-2.0
"""fake_quantize against ATen's and a plain copy. Targets, 16 MiB, one thread: >= 5x ATen, <= 1.3x the time of clone."""

from __future__ import annotations

import torch

from benchmarks.rivals import Rivals, assert_near, rivals, values
from pyquant import ops

STEP = 0.05


def qparams(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full(shape, STEP), torch.full(shape, 3, dtype=torch.int32)


@rivals("pyquant", "aten", "clone", short=True)
def bench_fake_quantize(elements: int) -> Rivals:
    x, (scale, zero_point) = values(elements), qparams()
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, None, 0, -128, 127),
        "aten": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["aten"](), STEP)
    return calls


@rivals("pyquant", "aten", "clone")
def bench_fake_quantize_bfloat16(elements: int) -> Rivals:
    x, (scale, zero_point) = values(elements, torch.bfloat16), qparams()
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, None, 0, -128, 127),
        "aten": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["aten"](), STEP)
    return calls


@rivals("pyquant", "float32, aten, back", "clone", short=True)
def bench_fake_quantize_float16(elements: int) -> Rivals:
    x, (scale, zero_point) = values(elements, torch.float16), qparams()
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, None, 0, -128, 127),
        "float32, aten, back": lambda: torch.fake_quantize_per_tensor_affine(
            x.float(), scale, zero_point, -128, 127
        ).half(),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["float32, aten, back"](), STEP)
    return calls


@rivals("pyquant", "aten", "clone", short=True)
def bench_fake_quantize_per_channel(elements: int) -> Rivals:
    x = values(elements).view(elements // 1024, 1024)
    scale, zero_point = qparams(x.shape[0])
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, 0, 0, -8, 7),
        "aten": lambda: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, -8, 7),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["aten"](), STEP)
    return calls


@rivals("pyquant", "aten", "clone")
def bench_fake_quantize_per_channel_last(elements: int) -> Rivals:
    x = values(elements).view(elements // 1024, 1024)
    scale, zero_point = qparams(1024)
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, 1, 0, -8, 7),
        "aten": lambda: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 1, -8, 7),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["aten"](), STEP)
    return calls


@rivals("pyquant", "aten on a view", "clone", short=True)
def bench_fake_quantize_per_group_of_32(elements: int) -> Rivals:
    x = values(elements).view(elements // 1024, 1024)
    scale, zero_point = qparams(x.shape[0], 32)
    view, flat_scale, flat_zero = x.view(-1, 32), scale.flatten(), zero_point.flatten()
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, 1, 32, -8, 7),
        "aten on a view": lambda: torch.fake_quantize_per_channel_affine(view, flat_scale, flat_zero, 0, -8, 7),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), calls["aten on a view"]().view(x.shape), STEP)
    return calls


@rivals("pyquant", "aten", "clone")
def bench_gradient(elements: int) -> Rivals:
    x, (scale, zero_point) = values(elements), qparams()
    grad = torch.ones_like(x)
    mask = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, STEP, 3, -128, 127)[1]
    backward = torch.ops.pyquant.fake_quantize_backward.default
    calls: Rivals = {
        "pyquant": lambda: backward(grad, x, scale, zero_point, None, 0, -128, 127),
        "aten": lambda: torch.ops.aten.fake_quantize_per_tensor_affine_cachemask_backward(grad, mask),
        "clone": x.clone,
    }
    assert (calls["pyquant"]() != calls["aten"]()).float().mean() < 1e-3
    return calls


@rivals("pyquant", "clone", threads=(1,))
def bench_fake_quantize_of_four_times_the_size(elements: int) -> Rivals:
    """64 MiB by default: each result is fresh memory of the system, whose pages a copy takes one fault at a time."""
    x, (scale, zero_point) = values(4 * elements), qparams()
    calls: Rivals = {
        "pyquant": lambda: ops.fake_quantize(x, scale, zero_point, None, 0, -128, 127),
        "clone": x.clone,
    }
    assert_near(calls["pyquant"](), torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127), STEP)
    return calls
