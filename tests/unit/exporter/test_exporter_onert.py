# SPDX-License-Identifier: Apache-2.0
"""Target onert: every lowering, legalized, on the real runtime against eager and against TICO's runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exporter_cases import Graph, inputs_of, operators
from test_exporter_float import CASES, X
from torch import nn

from pyquant.exporter import CircleProgram, TensorSpec, export
from pyquant.exporter.legalize import legalize
from pyquant.verify.runtimes import onert, tico

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

FORMS: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any], str]] = {}


def form(name: str, fn: Callable[..., Any], *specs: Any, ops: str, **parts: Any) -> None:
    FORMS[name] = (fn, list(specs), parts, ops)


I32, I64, BOOL = (TensorSpec((2, 3, 4), dtype) for dtype in (torch.int32, torch.int64, torch.bool))
FC = "RESHAPE FULLY_CONNECTED RESHAPE"
form("linear", lambda m, x: m.fc(x), X, ops=FC, fc=nn.Linear(8, 5))
form("linear_of_a_vector", lambda m, x: m.fc(x), (8,), ops=FC, fc=nn.Linear(8, 5))
form("linear_of_rank_4", lambda m, x: m.fc(x), (2, 1, 3, 8), ops=FC, fc=nn.Linear(8, 5, bias=False))
form("linear_of_rows", lambda m, x: m.fc(x), (3, 8), ops="FULLY_CONNECTED", fc=nn.Linear(8, 5))
form(
    "linears_meet_flat",
    lambda m, x: m.b(m.a(x)),
    X,
    ops="RESHAPE FULLY_CONNECTED FULLY_CONNECTED RESHAPE",
    a=nn.Linear(8, 5),
    b=nn.Linear(5, 7),
)
form("residual_of_a_batch", lambda m, x: x + m.fc(x), (3, 4, 8), ops=f"{FC} ADD", fc=nn.Linear(8, 8))
form("constant_times", lambda m, x: m.w @ x, X, ops="RESHAPE BATCH_MATMUL", w=torch.randn(2, 4, 3))
form("matmul_5", lambda m, x, y: x @ y, (2, 3, 2, 4, 5), (2, 3, 2, 5, 3), ops="RESHAPE RESHAPE BATCH_MATMUL RESHAPE")
form(
    "matmul_5_broadcasts",
    lambda m, x, y: x @ y.mT,
    (2, 3, 2, 4, 5),
    (3, 1, 3, 5),
    ops="RESHAPE RESHAPE BROADCAST_TO RESHAPE BATCH_MATMUL RESHAPE",
)
form(
    "constant_times_5",
    lambda m, x: m.w @ x,
    (2, 3, 2, 5, 3),
    ops="RESHAPE BROADCAST_TO RESHAPE RESHAPE BATCH_MATMUL RESHAPE",
    w=torch.randn(4, 5),
)
form("index_arithmetic", lambda m, i: torch.clamp(i - 3, min=0), I32, ops="SUB NEG MINIMUM NEG")
form("maximum_of_integers", lambda m, i, j: torch.maximum(i - 2, j), I32, I32, ops="SUB NEG NEG MINIMUM NEG")
form("maximum_of_longs", lambda m, i: (i - 3).clamp(min=-1), I64, ops="SUB CAST NEG MINIMUM NEG CAST")
form("minimum_of_longs", lambda m, i, j: torch.minimum(i, j), I64, I64, ops="CAST CAST MINIMUM CAST")
form("slice_of_integers", lambda m, i: i[:, 1:, :2], I32, ops="STRIDED_SLICE STRIDED_SLICE")
form("slice_of_longs", lambda m, i: i[:, 1:], I64, ops="STRIDED_SLICE")
form("transpose_of_longs", lambda m, i: i.permute(2, 0, 1), I64, ops="CAST TRANSPOSE CAST")
form("expand_of_longs", lambda m, i: i[None].expand(3, 2, 3, 4), I64, ops="RESHAPE CAST BROADCAST_TO CAST")
form("gather_of_longs", lambda m, i: i[:, m.k], I64, ops="CAST GATHER CAST", k=torch.tensor([2, 0]))
form("largest_long", lambda m, i: i.amax(-1), I64, ops="CAST REDUCE_MAX CAST")
form("place_of_the_largest_long", lambda m, i: i.argmax(-1), I64, ops="CAST ARG_MAX")
form("choice_of_integers", lambda m, i, j: torch.where(i > j, i, j - 1), I32, I32, ops="GREATER SUB SUB CAST MUL ADD")
form("choice_of_longs", lambda m, i, j: torch.where(i > j, i, j), I64, I64, ops="GREATER SUB CAST MUL ADD")
form("transpose_of_a_mask", lambda m, b: b.permute(2, 0, 1), BOOL, ops="CAST TRANSPOSE CAST")
form("slice_of_a_mask", lambda m, b: b[:, 1:], BOOL, ops="CAST STRIDED_SLICE CAST")
form("masks_joined", lambda m, b, c: torch.cat([b, c], 1), BOOL, BOOL, ops="CAST CAST CONCATENATION CAST")
form("choice_of_masks", lambda m, b, c: torch.where(b, c, ~c), BOOL, BOOL, ops="NOT CAST CAST SUB CAST MUL ADD CAST")


def runs_as_eager(graph: Graph) -> CircleProgram:
    program = export(graph, target="onert")
    assert program.check("onert") == []
    inputs = inputs_of(graph)
    with torch.no_grad():
        eager = graph(*inputs)
    for runtime in (onert, tico):
        got = runtime.run(program, inputs)["y"]
        assert got.dtype == eager.dtype
        torch.testing.assert_close(got, eager, rtol=1e-5, atol=1e-5)
    return program


@pytest.mark.parametrize("name", CASES)
def test_every_float_lowering_runs_on_onert(name: str) -> None:
    fn, specs, parts, _ = CASES[name]
    runs_as_eager(Graph(fn, *specs, **parts))


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_onert_lacks_are_written_in_others(name: str) -> None:
    fn, specs, parts, expected = FORMS[name]
    program = runs_as_eager(Graph(fn, *specs, **parts))
    assert [op.removeprefix("LOGICAL_") for op in operators(program)] == expected.split()


@pytest.mark.parametrize("target", ["circle", "luci"])
def test_other_targets_keep_their_graphs(target: Any) -> None:
    fn, specs, parts, _ = FORMS["matmul_5_broadcasts"]
    graph = export(Graph(fn, *specs, **parts)).graph
    assert legalize(graph, target) is graph


def test_legalizing_twice_changes_nothing() -> None:
    for name in ("linears_meet_flat", "constant_times_5", "maximum_of_longs", "choice_of_masks"):
        fn, specs, parts, _ = FORMS[name]
        once = export(Graph(fn, *specs, **parts), target="onert").graph
        assert legalize(once, "onert").to_json() == once.to_json()
