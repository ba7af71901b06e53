# SPDX-License-Identifier: Apache-2.0
"""The operators under torch: opcheck, torch.export (one node each), torch.compile, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import (
    DTYPES,
    GRANULARITIES,
    SHAPE,
    Call,
    Granularity,
    assert_same_bits,
    by_name,
    calls,
    histogram_state,
    observer_state,
    ordinary,
    other_calls,
    random_bits,
    scales_for,
)
from torch import Tensor, nn

from pyquant import ops
from pyquant.ops import reference

dtypes = pytest.mark.parametrize("dtype", by_name(DTYPES))
granularities = pytest.mark.parametrize("g", by_name(GRANULARITIES))


@dtypes
@granularities
def test_opcheck(dtype: torch.dtype, g: Granularity) -> None:
    for call in calls(dtype, g):
        torch.library.opcheck(call.op, call.args)


@pytest.mark.parametrize("call", by_name(other_calls()))
def test_opcheck_others(call: Call) -> None:
    torch.library.opcheck(call.op, call.args)


class Calls(nn.Module):
    """Every functional operator of one granularity, through the Python functions."""

    def __init__(self, g: Granularity) -> None:
        super().__init__()
        self.g = g
        scale, zero_point = scales_for(torch.empty(SHAPE), g, (-8, 7))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        where = (self.scale, self.zero_point, self.g.axis, self.g.group)
        y = ops.fake_quantize(x, *where, -8, 7)
        q = ops.quantize(x, *where, -8, 7, torch.int8)
        lo, hi = ops.minmax(x, self.g.axis, self.g.group)
        scale, zero_point = ops.choose_qparams(lo, hi, -8, 7, False)
        back = ops.dequantize(q, *where)
        bias = ops.fake_quantize_bias(self.scale, self.scale, 32)
        return y, back, ops.pack_int4(q), scale, zero_point, bias


NODES = ["fake_quantize", "quantize", "minmax", "choose_qparams", "dequantize", "fake_quantize_bias", "pack_int4"]


def own_nodes(program: torch.export.ExportedProgram) -> list[str]:
    return [n.target._opname for n in program.graph.nodes if getattr(n.target, "namespace", "") == "pyquant"]


@granularities
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export_keeps_one_node_each(g: Granularity, dynamic: bool) -> None:
    model, x = Calls(g), ordinary(SHAPE)
    free = next(d for d in range(3) if g.axis is None or (d != g.axis % 3 and g.group == 0) or (g.group and d == 0))
    if g.group and dynamic:
        pytest.skip("grouped scales have the shape of x, so x is static beside them")
    shapes = {"x": {free: torch.export.Dim("n", min=2, max=64)}} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    assert own_nodes(program) == NODES
    for size in (SHAPE[free], *((17, 5) if dynamic else ())):
        shape = [size if d == free else n for d, n in enumerate(SHAPE)]
        x = ordinary(tuple(shape))
        assert_same_bits(program.module()(x), model(x))


class Observed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lo", torch.tensor(torch.inf))
        self.register_buffer("hi", torch.tensor(-torch.inf))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops.observe_minmax_(self.lo, self.hi, self.count, x)
        return x + 1


def test_export_of_an_observer_updates_its_state() -> None:
    with torch.no_grad():
        program = torch.export.export(Observed(), (ordinary((3,)),))
    assert own_nodes(program) == ["observe_minmax_"]
    module = program.module()
    module(torch.tensor([1.0, -2.0, 0.0]))
    state = dict(module.named_buffers())
    assert (state["lo"].item(), state["hi"].item(), state["count"].tolist()) == (-2.0, 1.0, [3, 0])


def compiled(model: Callable[..., Any], backend: str, dynamic: bool) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_aot_eager(dynamic: bool) -> None:
    model, observer = Calls(GRANULARITIES[0]), Observed()
    run, watch = compiled(model, "aot_eager", dynamic), torch.compile(observer, backend="aot_eager", dynamic=dynamic)
    for n in (3, 5):
        x = ordinary((n, 10, 12), seed=n)
        assert_same_bits(run(x), model(x))
        watch(x)
    assert observer.count.tolist() == [8 * 120, 0]


# torch 2.13's dynamo instantiates the autograd.Function itself and warns about it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_aot_eager_gradient() -> None:
    scale, zero_point = scales_for(torch.empty(SHAPE), GRANULARITIES[3], (-8, 7))

    def loss(x: Tensor) -> Tensor:
        return ops.fake_quantize(x, scale, zero_point, -1, 0, -8, 7).square().sum()

    x = ordinary(SHAPE).requires_grad_()
    expected = torch.autograd.grad(loss(x), x)
    assert_same_bits(torch.autograd.grad(compiled(loss, "aot_eager", False)(x), x), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_inductor() -> None:
    model, x = Calls(GRANULARITIES[4]), ordinary(SHAPE)
    assert_same_bits(compiled(model, "inductor", False)(x), model(x))


@dtypes
@granularities
def test_gradient_passes_where_representable(dtype: torch.dtype, g: Granularity) -> None:
    x = random_bits(SHAPE, dtype).requires_grad_()
    scale, zero_point = scales_for(x, g, (-8, 7))
    upstream = ordinary(SHAPE, dtype, 1)
    ops.fake_quantize(x, scale, zero_point, g.axis, g.group, -8, 7).backward(upstream)
    expected = reference.fake_quantize_backward(upstream, x.detach(), scale, zero_point, g.axis, g.group, -8, 7)
    assert x.grad is not None
    assert_same_bits(x.grad, expected)


def test_gradient_at_the_ends_of_the_grid() -> None:
    x = torch.tensor([-8.6, -8.5, -8.4, 0.0, 7.4, 7.49, 7.5, torch.nan, torch.inf], requires_grad=True)
    ops.fake_quantize(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), None, 0, -8, 7).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_no_gradient_is_tracked_without_need() -> None:
    scale, zero_point = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    assert ops.fake_quantize(ordinary((3,)), scale, zero_point, None, 0, -8, 7).grad_fn is None
    with torch.no_grad():
        x = ordinary((3,)).requires_grad_()
        assert ops.fake_quantize(x, scale, zero_point, None, 0, -8, 7).grad_fn is None


def test_statistics_hold_no_graph() -> None:
    x = ordinary((4, 6)).requires_grad_()
    state, ema, histogram = observer_state(), observer_state((4,)), histogram_state()
    ops.observe_minmax_(*state, x * 2)
    ops.observe_ema_(*ema, x * 2, 0, 0.9)
    ops.observe_histogram_(*histogram, x * 2)
    found = [*ops.minmax(x, 0), *ops.mse_range(x, None, 0, -7, 7, True)]
    assert not any(t.requires_grad for t in (*state, *ema, *histogram, *found))


def test_gradient_of_a_bias_passes_unchanged() -> None:
    bias = torch.tensor([1.0, -2.5, 0.3], requires_grad=True)
    upstream = torch.tensor([0.5, 2.0, -1.0])
    ops.fake_quantize_bias(bias, torch.tensor(0.1), 32).backward(upstream)
    assert bias.grad is not None
    assert torch.equal(bias.grad, upstream)


def test_the_raw_operator_has_no_gradient() -> None:
    """Why users call the function and never torch.ops.pyquant: the operator itself cuts the graph, with a warning."""
    x = ordinary((3,)).requires_grad_()
    y = torch.ops.pyquant.fake_quantize(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), None, 0, -8, 7)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        y.sum().backward()
    assert x.grad is None
