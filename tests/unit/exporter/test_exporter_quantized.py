# SPDX-License-Identifier: Apache-2.0
"""Fully quantized graphs: 0 tensors without qparams, and Circle = eager in TICO's FAKE_QUANTIZE, for each lowering."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import ACTIVATIONS, Graph, Grid, channels, inputs_of, operators, quantized, tensor, weight
from torch import nn

from pyquant import ops
from pyquant.exporter import LowPrecisionWarning, TensorSpec, export

X = (2, 3, 8)
WEIGHTS = {"uint8": "uint8", "int8": "sym8", "int16": "int4"}


def act(kind: str, low: float = -3.0, high: float = 3.0) -> Grid:
    return Grid(kind, low, high)


def linear_fn(bits: int) -> Any:
    def fn(m: Graph, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        bias = ops.fake_quantize_bias(m.b, m.a.scale * m.wq.scale, bits)
        return m.out(F.linear(x, m.wq(m.w), bias))

    return fn


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_linear(kind: str) -> None:
    w = weight(16, 8)
    bits = 64 if kind == "int16" else 32
    graph = Graph(
        linear_fn(bits), X, a=act(kind), w=w, wq=channels(w, WEIGHTS[kind]), b=torch.randn(16), out=act(kind, -5, 6)
    )
    program, report = quantized(graph)
    assert report.exported_equal
    assert operators(program) == ["FULLY_CONNECTED"]
    bias = tensor(program, "b")
    assert (bias.dtype, bias.quant.axis, len(bias.quant.scale)) == (f"int{bits}", 0, 16)
    assert tensor(program, "w").dtype == {"uint8": "uint8", "int8": "int8", "int16": "int4"}[kind]
    assert [t.dtype for t in (*program.inputs, *program.outputs)] == [kind, kind]


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "sym8", "uint8", "int16"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_weight_types_and_packing(kind: str, per: str) -> None:
    w = weight(5, 7)
    wq = channels(w, kind) if per == "channel" else Grid(kind, w.min(), w.max())
    graph = Graph(lambda m, x: m.out(F.linear(m.a(x), m.wq(m.w))), (4, 7), a=act("int16"), w=w, wq=wq, out=act("int16"))
    program, _ = quantized(graph)
    dtype = {"sym8": "int8"}.get(kind, kind)
    weight_tensor = tensor(program, "w")
    assert (weight_tensor.dtype, weight_tensor.shape) == (dtype, (5, 7))
    data = program.graph.constants[weight_tensor.constant].tensor()
    assert data.numel() == (18 if dtype.endswith("t4") else 35)
    if dtype.endswith("t4"):
        ints = ops.quantize(w, wq.scale, wq.zero_point, wq.axis, 0, wq.qmin, wq.qmax, torch.int16).reshape(-1)
        assert data[0] == (int(ints[0]) & 15) | (int(ints[1]) & 15) << 4, "low nibble first"


BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "matmul": lambda x, y: x @ y.transpose(-1, -2) * 0.25,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, kind: str) -> None:
    def fn(m: Graph, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = m.a(x), m.b(y)
        if name == "matmul":
            return m.out(m.mid(x @ y.transpose(-1, -2)) * 0.25)
        return m.out(BINARY[name](x, y))

    quantized(
        Graph(fn, (2, 16, 8), (2, 16, 8), a=act(kind), b=act(kind, -2, 2.5), mid=act(kind, -9, 9), out=act(kind, -5, 5))
    )


UNARY = {
    "softmax": (lambda x: F.softmax(x, -1), 0, 1),
    "gelu": (F.gelu, -0.2, 3),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), -0.2, 3),
    "sigmoid": (torch.sigmoid, 0, 1),
    "tanh": (torch.tanh, -1, 1),
    "relu": (F.relu, 0, 3),
    "exp": (torch.exp, 0, 20),
    "neg": (torch.neg, -3, 3),
    "abs": (torch.abs, 0, 3),
    "square": (lambda x: x**2, 0, 9),
    "clamp": (lambda x: x.clamp(-0.33, 1.21), -0.33, 1.21),
    "mean": (lambda x: x.mean(-1, keepdim=True), -2, 2),
    "sum": (lambda x: x.sum((1, 2)), -9, 9),
    "amax": (lambda x: x.amax(-1), -1, 3),
    "rms_norm": (lambda x: F.rms_norm(x, (8,), None, 1e-6), -2.5, 2.5),
    "rms_norm_rank_2": (lambda x: F.rms_norm(x.flatten(0, 1), (8,), None, 1e-6), -2.5, 2.5),
    "add_scalar": (lambda x: x + 1.7, -1.5, 5),
    "mul_negative_scalar": (lambda x: x * -0.7, -3, 3),
    "div_scalar": (lambda x: x / 7.0, -0.5, 0.5),
    "add_zero": (lambda x: x + 0.0, -3, 3),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, kind: str) -> None:
    function, low, high = UNARY[name]
    _, report = quantized(
        Graph(lambda m, x: m.out(function(m.a(x))), (2, 16, 8), a=act(kind), out=act(kind, low, high))
    )
    assert report.unchecked <= 2


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_sqrt_rsqrt_and_log(kind: str) -> None:
    def fn(m: Graph, x: torch.Tensor) -> torch.Tensor:
        x = m.a(x)
        return m.out(m.s(x.sqrt()) + m.r(torch.rsqrt(m.e(x + 0.1))))

    parts = {
        "a": act(kind, 0, 3),
        "s": act(kind, 0, 2),
        "e": act(kind, 0, 3.2),
        "r": act(kind, 0, 4),
        "out": act(kind, 0, 5),
    }
    graph = Graph(fn, X, **parts)
    quantized(graph, [inputs_of(graph)[0].abs()])


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_rms_norm_with_gamma(kind: str) -> None:
    gamma = torch.rand(8) + 0.5
    graph = Graph(
        lambda m, x: m.out(F.rms_norm(m.a(x), (8,), m.gq(m.g), 1e-6)),
        (2, 16, 8),
        a=act(kind),
        g=gamma,
        gq=Grid(kind, 0.0, 1.5),
        out=act(kind, -4, 4),
    )
    program, _ = quantized(graph)
    assert tensor(program, "g").dtype == kind


def test_scalar_is_exact_on_its_own_grid() -> None:
    graph = Graph(lambda m, x: m.out(m.mid(m.a(x) * -0.3) + 0.1), X, a=act("uint8"), mid=act("uint8"), out=act("uint8"))
    program, _ = quantized(graph)
    negative, positive = tensor(program, "scalar_-0.3"), tensor(program, "scalar_0.1")
    assert (negative.dtype, negative.quant.zero_point) == ("uint8", (1,))
    assert program.graph.constants[negative.constant].tensor().item() == 0
    assert (positive.quant.zero_point, program.graph.constants[positive.constant].tensor().item()) == ((0,), 1)
    assert negative.quant.scale == (float(torch.tensor(0.3)),)


def test_one_element_constant_counts_as_a_scalar() -> None:
    graph = Graph(lambda m, x: m.out(m.a(x) * m.k), X, a=act("int16"), k=torch.tensor([0.125]), out=act("int16"))
    program, _ = quantized(graph)
    assert tensor(program, "k").dtype == "int16"


MOVES = {
    "reshape": lambda x: x.reshape(6, 8),
    "permute": lambda x: x.permute(2, 0, 1),
    "expand": lambda x: x[:, None].expand(2, 4, 3, 8),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "slice": lambda x: x[..., 2:5],
    "strided": lambda x: x[..., ::2],
    "select": lambda x: x[:, 1],
    "chunk": lambda x: x.chunk(2, -1)[1],
    "unbind": lambda x: x.unbind(1)[0],
    "index": lambda x: x[:, torch.tensor([2, 0])],
    "rotate_half": lambda x: torch.cat([x[..., 4:], x[..., :4]], -1),
    "stack": lambda x: torch.stack([x, x], 1),
    "where": lambda x: torch.where(x > 0.5, x, 0.0),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_keep_the_grid(name: str) -> None:
    graph = Graph(lambda m, x: MOVES[name](m.a(x)), X, a=act("uint8"))
    program, report = quantized(graph)
    assert program.outputs[0].quant == program.inputs[0].quant
    assert "QUANTIZE" not in operators(program)
    assert report.max_lsb == 0


@pytest.mark.parametrize("name", MOVES)
def test_moves_carry_a_grid_back_to_their_producer(name: str) -> None:
    """linear -> move -> fake_quantize: the linear's own tensor stands on the grid."""
    w = weight(8, 8)
    graph = Graph(
        lambda m, x: m.out(MOVES[name](F.linear(m.a(x), m.wq(m.w)))),
        X,
        a=act("int16"),
        w=w,
        wq=channels(w, "sym8"),
        out=act("int16", -4, 4),
    )
    if name == "where":  # its condition reads the linear as it is
        return
    program, _ = quantized(graph)
    assert "QUANTIZE" not in operators(program)


def test_neg_inherits_a_symmetric_grid() -> None:
    graph = Graph(lambda m, x: -m.a(x), X, a=act("sym8"))
    program, _ = quantized(graph)
    assert program.outputs[0].quant == program.inputs[0].quant


def test_requantizing_is_an_explicit_operator_once() -> None:
    graph = Graph(
        lambda m, x: (m.b(m.a(x).reshape(6, 8)), m.b(m.a(x))),
        X,
        a=act("uint8"),
        b=act("uint8", -1, 1),
        outputs=("y", "z"),
    )
    program, _ = quantized(graph)
    assert operators(program) == ["RESHAPE", "QUANTIZE", "QUANTIZE"]
    graph = Graph(lambda m, x: m.a(m.a(x)), X, a=act("uint8"))
    assert operators(quantized(graph)[0]) == ["RESHAPE"], "an alias of the input is copied, not requantized"


def test_cat_of_unequal_grids_quantizes_each_unequal_part() -> None:
    graph = Graph(
        lambda m, x, y: m.out(torch.cat([m.a(x), m.b(y), m.out(x)], -1)),
        X,
        X,
        a=act("uint8", -1, 1),
        b=act("uint8", -2, 2),
        out=act("uint8"),
    )
    with pytest.raises(Exception, match="fake-quantized on different grids"):
        export(graph)
    graph.fn = lambda m, x, y: m.out(torch.cat([m.a(x), m.b(y)], -1))
    program, _ = quantized(graph)
    assert operators(program) == ["QUANTIZE", "QUANTIZE", "CONCATENATION"]
    assert program.inputs[0].quant is not None
    assert math.isclose(program.inputs[0].quant.scale[0], 2 / 255, rel_tol=1e-6), "the input keeps its calibrated grid"


def test_embedding_inherits_the_table() -> None:
    table = torch.randn(11, 8)
    graph = Graph(
        lambda m, i: m.out(F.embedding(i, m.tq(m.t)) * 2.0),
        TensorSpec((2, 5), torch.int32),
        t=table,
        tq=Grid("uint8", -3, 3),
        out=act("uint8", -6, 6),
    )
    program, _ = quantized(graph)
    assert operators(program) == ["GATHER", "MUL"]
    assert program.inputs[0].dtype == "int32"


@pytest.mark.parametrize("how", ["transpose", "slice", "reshape", "chunk", "select"])
def test_moved_per_channel_constant_keeps_its_scales(how: str) -> None:
    w = weight(8, 6)
    moved = {
        "transpose": lambda v: v.t(),
        "slice": lambda v: v[2:6],
        "reshape": lambda v: v.reshape(8, 2, 3),
        "chunk": lambda v: v.chunk(2, 0)[1],
        "select": lambda v: v[None][:, 1:][0],
    }[how]
    graph = Graph(
        lambda m, x: m.out(m.a(x) + moved(m.wq(m.w)).sum() * 0 + moved(m.wq(m.w))),
        moved(w).shape,
        w=w,
        wq=channels(w, "sym8"),
        a=act("int16"),
        out=act("int16"),
    )
    graph.fn = lambda m, x: m.out(m.a(x) + moved(m.wq(m.w)))
    program, _ = quantized(graph)
    weight_tensor = tensor(program, "w")
    assert weight_tensor.shape == tuple(moved(w).shape)
    assert weight_tensor.quant.axis == {"transpose": 1}.get(how, 0)
    assert len(weight_tensor.quant.scale) == weight_tensor.shape[weight_tensor.quant.axis]


def test_constant_expressions_fold_before_their_site() -> None:
    graph = Graph(
        lambda m, x: m.out(m.a(x) + m.kq(m.k * 2.0 + 1.0)),
        X,
        k=torch.randn(8),
        kq=act("int16"),
        a=act("int16"),
        out=act("int16"),
    )
    program, _ = quantized(graph)
    assert operators(program) == ["ADD"]


def test_large_expanded_constant_is_broadcast_not_stored() -> None:
    graph = Graph(
        lambda m, x: m.out(m.a(x) + m.kq(m.k).expand(8, 64, 64)),
        (8, 64, 64),
        k=torch.randn(64),
        kq=act("uint8"),
        a=act("uint8"),
        out=act("uint8", -5.7, 5.7),
    )
    program, _ = quantized(graph)
    assert operators(program) == ["BROADCAST_TO", "ADD"]
    assert program.size < 200


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_model_is_the_same_file(dtype: torch.dtype) -> None:
    """Whatever float type simulates a quantized graph, the file has its integers."""

    def fn(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(m.a(x).float(), m.wq(m.w).float()).to(x.dtype)
        return m.out(m.out(y) * 0.5)

    w = weight(8, 8).to(dtype)
    parts = {"w": w, "wq": channels(w.float(), "sym8"), "a": act("uint8"), "out": act("uint8")}
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(LowPrecisionWarning, match=rf"eager computes 'case' in {name}, the file in float32 and integers"):
        program = export(Graph(fn, TensorSpec(X, dtype), **parts))
    assert operators(program) == ["FULLY_CONNECTED", "MUL"]
    assert {t.dtype for t in program.graph.tensors} == {"uint8", "int8"}
    single = export(Graph(fn, X, **{**parts, "w": w.float()}))
    assert program.to_bytes() == single.to_bytes()


def test_argmax_reads_integers() -> None:
    graph = Graph(lambda m, x: m.a(x).argmax(-1), X, a=act("uint8"))
    program, report = quantized(graph)
    assert operators(program) == ["ARG_MAX"]
    assert program.outputs[0].dtype == "int64"
    assert report.outputs[0].unequal == 0


def test_tied_weights_share_one_constant() -> None:
    w = weight(8, 8)
    q = channels(w, "sym8")
    graph = Graph(
        lambda m, x: m.out(F.linear(m.mid(F.linear(m.a(x), m.q(m.w))), m.q2(m.v))),
        X,
        w=w,
        v=w.clone(),
        q=q,
        q2=channels(w, "sym8"),
        a=act("int16"),
        mid=act("int16"),
        out=act("int16"),
    )
    program, _ = quantized(graph, single_layer=False)
    assert len(program.graph.constants) == 1


class Attention(nn.Module):
    """Scores, mask, softmax, mix: what an attention core with sites exports as."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.q, self.k, self.v = act(kind), act(kind), act(kind)
        self.scores, self.scaled, self.masked = act(kind, -20, 20), act(kind, -8, 8), act(kind, -30, 8)
        self.mask, self.weights, self.out = act(kind, -30, 0), act(kind, 0, 1), act(kind)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        q, k, v = self.q(heads), self.k(heads), self.v(heads)
        scores = self.scaled(self.scores(q @ k.transpose(-1, -2)) * 0.5)
        weights = self.weights(F.softmax(self.masked(scores + self.mask(mask)), -1))
        return self.out(weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_attention(kind: str) -> None:
    core = Attention(kind)
    core.k, core.v = core.q, core.q
    graph = Graph(lambda m, x, mask: m.core(x, mask), (2, 6, 8), (1, 1, 6, 6), core=core)
    x, _ = inputs_of(graph)
    mask = torch.full((1, 1, 6, 6), -30.0).triu(1)
    program, report = quantized(graph, [x, mask], single_layer=False)
    assert report.exported_equal
    assert operators(program).count("BATCH_MATMUL") == 2
    assert operators(program).count("TRANSPOSE") == 2, "the transposed keys are an adjoint flag"
    names = [t.name for t in program.graph.tensors]
    assert len(set(names)) == len(names)
    assert "core.softmax" in names
