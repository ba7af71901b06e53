# SPDX-License-Identifier: Apache-2.0
"""Mixed policies: float beside quantized, and integer types of different width in one operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, inputs_of, operators, quantized, tensor, weight

from pyquant import ops
from pyquant.exporter import CircleProgram, TensorSpec, export
from pyquant.exporter.grid import widened, widest
from pyquant.exporter.plan import Quant
from pyquant.verify import fidelity

X = (2, 16, 8)
W = weight(8, 8)


def mixed(graph: Graph) -> CircleProgram:
    program = export(graph, allow_float=True)
    assert program.check() == []
    fidelity(program, graph, inputs_of(graph))
    return program


def test_float_operator_between_quantized_ones() -> None:
    graph = Graph(lambda m, x: m.a(F.gelu(m.a(x)) + 1.0) * 2.0, X, a=Grid("uint8", -3, 3))
    program = mixed(graph)
    assert operators(program) == ["DEQUANTIZE", "GELU", "ADD", "QUANTIZE", "DEQUANTIZE", "MUL"]
    assert program.inputs[0].dtype == "uint8"
    assert program.outputs[0].dtype == "float32"


def test_one_dequantize_for_all_float_readers() -> None:
    graph = Graph(lambda m, x: F.gelu(y := m.a(x)) + torch.tanh(y), X, a=Grid("int8", -3, 3))
    assert operators(mixed(graph)) == ["DEQUANTIZE", "GELU", "TANH", "ADD"]


def test_float_input_read_raw_and_quantized() -> None:
    graph = Graph(lambda m, x: m.a(x) + x, X, a=Grid("int8", -3, 3))
    program = mixed(graph)
    assert operators(program) == ["QUANTIZE", "DEQUANTIZE", "ADD"]
    assert program.inputs[0].dtype == "float32"


@pytest.mark.parametrize("kind", ["int4", "uint8", "sym8"])
def test_weight_only_linear_is_hybrid(kind: str) -> None:
    graph = Graph(lambda m, x: F.linear(x, m.q(m.w), m.b), X, w=W, q=channels(W, kind), b=torch.rand(8))
    program = mixed(graph)
    assert operators(program) == ["FULLY_CONNECTED"]
    assert tensor(program, "w").quant is not None
    assert tensor(program, "b").dtype == "float32"


def test_weight_only_embedding_is_dequantized_after_the_gather() -> None:
    graph = Graph(
        lambda m, i: F.embedding(i, m.q(m.t)) * 2.0,
        TensorSpec((5,), torch.int32),
        t=weight(7, 8),
        q=Grid("sym8", -1, 1),
    )
    assert operators(mixed(graph)) == ["GATHER", "DEQUANTIZE", "MUL"]


def test_quantized_linear_with_float_result() -> None:
    """Its int32 bias becomes float with the same numbers, beside a hybrid weight."""
    graph = Graph(
        lambda m, x: F.linear(m.a(x), m.q(m.w), ops.fake_quantize_bias(m.b, m.a.scale * m.q.scale, 32)),
        X,
        a=Grid("int8", -3, 3),
        w=W,
        q=channels(W, "sym8"),
        b=torch.rand(8),
    )
    program = mixed(graph)
    assert operators(program) == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert (tensor(program, "w").dtype, tensor(program, "b").dtype) == ("int8", "float32")


def test_cat_of_float_and_quantized_parts() -> None:
    graph = Graph(lambda m, x, y: m.a(torch.cat([m.a(x), F.gelu(y)], -1)), X, X, a=Grid("int8", -3, 3))
    program = mixed(graph)
    assert operators(program) == ["GELU", "QUANTIZE", "CONCATENATION"]


def test_cat_of_unequal_grids_may_be_float() -> None:
    graph = Graph(lambda m, x, y: torch.cat([m.a(x), m.b(y)], -1), X, X, a=Grid("int8", -3, 3), b=Grid("int8", -2, 2))
    assert operators(mixed(graph)) == ["DEQUANTIZE", "DEQUANTIZE", "CONCATENATION"]


WIDTHS = {
    "softmax_16_to_8": (lambda m, x: m.u(F.softmax(m.s(x), -1)), ["SOFTMAX", "QUANTIZE"]),
    "gelu_8_to_16": (lambda m, x: m.s(F.gelu(m.a(x))), ["QUANTIZE", "GELU"]),
    "add_16_and_8": (lambda m, x: m.s(m.s(x) + m.a(m.s(x))), ["QUANTIZE", "QUANTIZE", "ADD"]),
    "add_uint8_and_int8": (lambda m, x: m.i(m.i(x) + m.a(m.i(x))), ["QUANTIZE", "QUANTIZE", "ADD"]),
    "matmul_8_by_16": (lambda m, x: m.s(m.a(x) @ m.s(m.a(x)).mT), ["QUANTIZE", "QUANTIZE", "BATCH_MATMUL"]),
    "scalar": (lambda m, x: m.s(m.a(x) * -0.5), ["QUANTIZE", "MUL"]),
    "norm": (lambda m, x: m.a(F.rms_norm(m.s(x), (8,), m.a(m.g), 1e-6)), ["RMS_NORM", "QUANTIZE"]),
    "clamp": (lambda m, x: m.a(m.s(x).clamp(-1, 1)), ["QUANTIZE", "MAXIMUM", "MINIMUM"]),
    "compare": (
        lambda m, x: torch.where(m.s(x) > m.a(m.s(x)), m.s(x), 0.0),
        ["QUANTIZE", "QUANTIZE", "GREATER", "SELECT_V2"],
    ),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_integer_types_of_different_width(name: str) -> None:
    """The runtimes want one type per operator; the widest holds the others' grids, so the numbers stay the same."""
    fn, expected = WIDTHS[name]
    grids = {
        "a": Grid("uint8", -2, 3.1),
        "i": Grid("int8", -2.2, 3),
        "s": Grid("int16", -3, 3),
        "u": Grid("uint8", 0, 1),
    }
    program, _ = quantized(Graph(fn, X, g=torch.rand(8), **grids), single_layer=False)
    assert operators(program) == expected
    assert program.check() == []


@pytest.mark.parametrize(("into", "out", "bias"), [("uint8", "int16", "int64"), ("int16", "uint8", "int64")])
def test_linear_between_widths(into: str, out: str, bias: str) -> None:
    graph = Graph(
        lambda m, x: m.o(F.linear(m.a(x), m.q(m.w), ops.fake_quantize_bias(m.b, m.a.scale * m.q.scale, 32))),
        X,
        a=Grid(into, -3, 3),
        o=Grid(out, -4, 3.7),
        w=W,
        q=channels(W, "sym8"),
        b=torch.rand(8),
    )
    program, _ = quantized(graph)
    assert tensor(program, "b").dtype == bias


@pytest.mark.parametrize(
    "dtypes", [("uint8", "int8"), ("int4", "uint8"), ("uint4", "int8"), ("int4", "uint4"), ("uint8", "int16")]
)
def test_widening_keeps_every_value(dtypes: tuple[str, str]) -> None:
    low, high = {"uint8": (0, 255), "int8": (-128, 127), "int4": (-8, 7), "uint4": (0, 15)}[dtypes[0]]
    zero = (low + high) // 2
    narrow = Quant(dtypes[0], (0.5,), (zero,), None, low, high)
    dtype = widest(dtypes)
    wide = widened(narrow, dtype)
    assert dtype == {("uint8", "int8"): "int8", ("int4", "uint4"): "int4"}.get(dtypes, dtypes[1])
    for end in (low, high):
        moved = end - zero + wide.zero_point[0]
        assert wide.qmin <= moved <= wide.qmax
