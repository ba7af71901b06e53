# SPDX-License-Identifier: Apache-2.0
"""Every lowering in a float graph: TICO's runtime (NATIVE) against eager, 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, inputs_of, operators
from torch import nn

from pyquant.exporter import TensorSpec, export
from pyquant.exporter.registry import LOWERINGS
from pyquant.verify.runtimes import tico

INDEX = TensorSpec((2, 3), torch.int32)
CASES: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any], list[str]]] = {}


def case(name: str, fn: Callable[..., Any], *specs: Any, ops: str, **parts: Any) -> None:
    CASES[name] = (fn, list(specs), parts, ops.split())


X = (2, 3, 8)
case("add", lambda m, x, y: x + y, X, (3, 1), ops="ADD")
case("add_scalar", lambda m, x: 1.5 + x, X, ops="ADD")
case("add_alpha", lambda m, x, y: torch.add(x, y, alpha=2.0), X, X, ops="MUL ADD")
case("add_minus", lambda m, x, y: torch.add(x, y, alpha=-1), X, X, ops="SUB")
case("sub", lambda m, x, y: x - y, X, X, ops="SUB")
case("rsub", lambda m, x: 2.0 - x, X, ops="SUB")
case("mul", lambda m, x, y: x * y, X, X, ops="MUL")
case("mul_scalar", lambda m, x: x * -0.3, X, ops="MUL")
case("div", lambda m, x, y: x / (y * y + 1.0), X, X, ops="MUL ADD DIV")
case("div_scalar", lambda m, x: x / 3.0, X, ops="DIV")
case("reciprocal", lambda m, x: torch.reciprocal(x * x + 1.0), X, ops="MUL ADD DIV")
case("square", lambda m, x: torch.square(x), X, ops="MUL")
case("neg", lambda m, x: -x, X, ops="NEG")
case("abs_sqrt", lambda m, x: x.abs().sqrt(), X, ops="ABS SQRT")
case("rsqrt", lambda m, x: torch.rsqrt(x.abs() + 1.0), X, ops="ABS ADD RSQRT")
case("exp", lambda m, x: x.exp(), X, ops="EXP")
case("log", lambda m, x: torch.log(x.abs() + 1.0), X, ops="ABS ADD LOG")
case("sin_cos", lambda m, x: torch.sin(x) + torch.cos(x), X, ops="SIN COS ADD")
case("pow_2", lambda m, x: x**2, X, ops="MUL")
case("pow_half", lambda m, x: (x.abs() + 1.0) ** -0.5, X, ops="ABS ADD RSQRT")
case("pow_root", lambda m, x: x.abs() ** 0.5, X, ops="ABS SQRT")
case("pow_3", lambda m, x: x**3, X, ops="POW")
case("pow_minus", lambda m, x: (x.abs() + 1.0) ** -1, X, ops="ABS ADD DIV")
case("pow_tensor", lambda m, x, y: (x.abs() + 1.0) ** y, X, X, ops="ABS ADD POW")
case("maximum", lambda m, x, y: torch.maximum(x, y), X, X, ops="MAXIMUM")
case("minimum", lambda m, x, y: torch.minimum(x, y), X, X, ops="MINIMUM")
case("clamp", lambda m, x: x.clamp(-0.5, 0.7), X, ops="MAXIMUM MINIMUM")
case(
    "clamp_tensors",
    lambda m, x: torch.clamp(x, m.lo, m.hi),
    X,
    ops="MAXIMUM MINIMUM",
    lo=torch.tensor(-0.5),
    hi=torch.tensor(0.4),
)
case("clamp_min", lambda m, x: x.clamp_min(0), X, ops="RELU")
case("clamp_max", lambda m, x: x.clamp_max(0.2), X, ops="MINIMUM")
case("softmax", lambda m, x: F.softmax(x, -1, dtype=torch.float32), X, ops="SOFTMAX")
case("gelu", lambda m, x: F.gelu(x), X, ops="GELU")
case("gelu_tanh", lambda m, x: F.gelu(x, approximate="tanh"), X, ops="GELU")
case("sigmoid", lambda m, x: torch.sigmoid(x), X, ops="LOGISTIC")
case("tanh", lambda m, x: torch.tanh(x), X, ops="TANH")
case("relu", lambda m, x: F.relu(x), X, ops="RELU")
case("silu", lambda m, x: F.silu(x), X, ops="LOGISTIC MUL")
case("linear", lambda m, x: m.fc(x), X, ops="FULLY_CONNECTED", fc=nn.Linear(8, 5))
case("linear_no_bias", lambda m, x: m.fc(x), X, ops="FULLY_CONNECTED", fc=nn.Linear(8, 5, bias=False))
case("matmul", lambda m, x, y: x @ y, X, (2, 8, 4), ops="BATCH_MATMUL")
case("matmul_transposed", lambda m, x, y: x @ y.transpose(-1, -2), X, X, ops="BATCH_MATMUL")
case("matmul_lhs_transposed", lambda m, x, y: x.mT @ y, X, X, ops="BATCH_MATMUL")
case("bmm", lambda m, x, y: torch.bmm(x, y), X, (2, 8, 4), ops="BATCH_MATMUL")
case("mm", lambda m, x, y: torch.mm(x, y.t()), (3, 8), (4, 8), ops="BATCH_MATMUL")
case("matmul_const", lambda m, x: m.w @ x, X, ops="BATCH_MATMUL", w=torch.randn(4, 3))
case("rms_norm_3", lambda m, x: F.rms_norm(x, (8,), m.g, 1e-6), X, ops="RMS_NORM", g=torch.rand(8) + 0.5)
case("rms_norm_2", lambda m, x: F.rms_norm(x, (8,), None, 1e-6), (6, 8), ops="RESHAPE RMS_NORM RESHAPE")
case("rms_norm_5", lambda m, x: F.rms_norm(x, (8,)), (2, 1, 3, 2, 8), ops="RESHAPE RMS_NORM RESHAPE")
case("layer_norm", lambda m, x: m.norm(x), X, ops="MEAN SUB MUL MEAN ADD RSQRT MUL MUL ADD", norm=nn.LayerNorm(8))
case("mean", lambda m, x: x.mean(-1, keepdim=True), X, ops="MEAN")
case("mean_all", lambda m, x: x.mean(), X, ops="MEAN")
case("sum", lambda m, x: x.sum((0, -1)), X, ops="SUM")
case("sum_all", lambda m, x: x.sum(), X, ops="SUM")
case("amax", lambda m, x: x.amax(-1, keepdim=True), X, ops="REDUCE_MAX")
case("argmax", lambda m, x: x.argmax(-1), X, ops="ARG_MAX")
case("argmax_keep", lambda m, x: x.argmax(1, keepdim=True), X, ops="ARG_MAX RESHAPE")
case("argmax_all", lambda m, x: x.argmax(), X, ops="RESHAPE ARG_MAX")
case("views", lambda m, x: x.view(6, 8).reshape(2, 24).unflatten(1, (3, 8)).flatten(1), X, ops="RESHAPE")
case("unsqueeze_squeeze", lambda m, x: (x.unsqueeze(1) + 1.0).squeeze(1), X, ops="RESHAPE ADD RESHAPE")
case("permute", lambda m, x: x.permute(2, 0, 1), X, ops="TRANSPOSE")
case("transposes_merge", lambda m, x: x.permute(2, 0, 1).transpose(0, 1), X, ops="TRANSPOSE")
case("t", lambda m, x: x.t(), (3, 8), ops="TRANSPOSE")
case("reversed_axes", lambda m, x: x.permute(2, 1, 0) + torch.ops.aten.numpy_T(x), X, ops="TRANSPOSE TRANSPOSE ADD")
case("expand", lambda m, x: x.unsqueeze(0).expand(4, 2, 3, 8), X, ops="RESHAPE BROADCAST_TO")
case("expand_idle", lambda m, x: x.expand(1, 2, 3, 8), X, ops="RESHAPE")
case("repeat", lambda m, x: x.repeat(2, 1, 3), X, ops="RESHAPE BROADCAST_TO RESHAPE")
case("repeat_interleave", lambda m, x: x.repeat_interleave(2, 1), X, ops="RESHAPE BROADCAST_TO RESHAPE")
case("slice", lambda m, x: x[:, 1:, :-2], X, ops="SLICE SLICE")
case("pad", lambda m, x: F.pad(x, (1, 2, 0, 3)), X, ops="PAD")
case("pad_by_name", lambda m, x: F.pad(x, (0, 0, 1, 0), mode="constant", value=0.0), X, ops="PAD")
case("pad_nothing", lambda m, x: F.pad(x, (0, 0)) + 1.0, X, ops="ADD")
case("conv", lambda m, x: m.c(x), (2, 3, 6, 7), ops="TRANSPOSE PAD CONV_2D TRANSPOSE", c=nn.Conv2d(3, 4, 3, 2, 1))
case(
    "conv_no_bias",
    lambda m, x: m.c(x),
    (2, 3, 6, 7),
    ops="TRANSPOSE CONV_2D TRANSPOSE",
    c=nn.Conv2d(3, 4, 2, bias=False),
)
case(
    "conv_depthwise",
    lambda m, x: m.c(x),
    (2, 3, 6, 7),
    ops="TRANSPOSE DEPTHWISE_CONV_2D TRANSPOSE",
    c=nn.Conv2d(3, 6, 3, dilation=(1, 2), groups=3),
)
case(
    "conv_channels_last",
    lambda m, x: m.c(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + 1.0,
    (2, 6, 7, 3),
    ops="CONV_2D ADD",
    c=nn.Conv2d(3, 4, 3, stride=(1, 2)),
)
case("slice_step", lambda m, x: x[..., 1::3], X, ops="STRIDED_SLICE")
case("narrow", lambda m, x: x.narrow(2, 2, 3), X, ops="SLICE")
case("select", lambda m, x: x[:, -1], X, ops="SLICE RESHAPE")
case("split", lambda m, x: torch.split(x, 3, -1)[2], X, ops="SLICE")
case("split_sizes", lambda m, x: torch.split(x, [2, 6], dim=-1)[1], X, ops="SLICE")
case("chunk", lambda m, x: x.chunk(2, -1)[1], X, ops="SLICE")
case("unbind", lambda m, x: x.unbind(1)[2], X, ops="SLICE RESHAPE")
case("cat", lambda m, x, y: torch.cat([x, y, m.c], -1), X, (2, 3, 1), ops="CONCATENATION", c=torch.ones(2, 3, 2))
case("stack", lambda m, x, y: torch.stack([x, y], 1), X, X, ops="RESHAPE RESHAPE CONCATENATION")
case("where", lambda m, x, y: torch.where(x > y, x, -1.0), X, X, ops="GREATER SELECT_V2")
case("masked_fill", lambda m, x: x.masked_fill(m.mask, -9.0), X, ops="SELECT_V2", mask=torch.rand(3, 8) > 0.5)
case(
    "comparisons",
    lambda m, x, y: torch.where((x >= y) & ~(x < 0.1), x, y),
    X,
    X,
    ops="GREATER_EQUAL LESS LOGICAL_NOT LOGICAL_AND SELECT_V2",
)
case("index_select", lambda m, x: torch.index_select(x, 2, m.i), X, ops="GATHER", i=torch.tensor([5, 0, 5]))
case("index", lambda m, x: x[:, m.i], X, ops="GATHER", i=torch.tensor([[2, 0], [1, 1]]))
case("embedding", lambda m, i: F.embedding(i, m.table), INDEX, ops="GATHER", table=torch.randn(7, 4))
case("cast", lambda m, i: i.float() * 0.5, INDEX, ops="CAST MUL")
case("idle", lambda m, x: F.dropout(x.clone().contiguous().detach().to(torch.float32), 0.5, False) + 1.0, X, ops="ADD")
case(
    "attention",
    lambda m, x: F.softmax(x @ x.transpose(1, 2) * 0.3, -1) @ x,
    X,
    ops="BATCH_MATMUL MUL SOFTMAX BATCH_MATMUL",
)
case("integers", lambda m, i: (i + 1) * m.k, INDEX, ops="ADD MUL", k=torch.tensor([1, 2, 3], dtype=torch.int32))


@pytest.mark.parametrize("name", CASES)
def test_float_graph_equals_eager(name: str) -> None:
    fn, specs, parts, expected = CASES[name]
    graph = Graph(fn, *specs, **parts)
    program = export(graph)
    assert operators(program) == expected
    inputs = inputs_of(graph)
    with torch.no_grad():
        eager = graph(*inputs)
    got = tico.run(program, inputs)["y"]
    assert got.dtype == eager.dtype
    torch.testing.assert_close(got, eager, rtol=1e-6, atol=1e-6)


def test_every_lowering_is_exercised_or_listed() -> None:
    """Overloads that other tests reach, or that share their function with one that is tested here."""
    functions = {rule.lower for rule in LOWERINGS.values()}
    assert len(functions) >= 55
    assert {rule.target.split(".")[0] for rule in LOWERINGS.values()} == {"aten", "pyquant", "getitem"}
