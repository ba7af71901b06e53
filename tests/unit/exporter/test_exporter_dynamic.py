# SPDX-License-Identifier: Apache-2.0
"""One open length: the shape signature of the file, running it at several lengths, and the operators that refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, quantized, weight
from torch import Tensor

from pyquant import circle
from pyquant.errors import ExportError, InputError, ProfileError
from pyquant.exporter import TensorSpec, export
from pyquant.verify import fidelity
from pyquant.verify.runtimes import tico

IDS = TensorSpec((2, 5), torch.int32, dynamic=1)
LENGTHS = (1, 5, 64)


def ids(length: int) -> Tensor:
    return torch.randint(0, 10, (2, length), generator=torch.Generator().manual_seed(length), dtype=torch.int32)


def table(scale: float = 1.0) -> Graph:
    return Graph(
        lambda m, i: m.a(F.embedding(i, m.q(m.t))),
        IDS,
        t=weight(10, 8) * scale,
        q=Grid("int8", -1.5, 1.5),
        a=Grid("uint8", -1, 1),
    )


def layers() -> Graph:
    def fn(m: Any, i: Tensor) -> Tensor:
        rows = m.a(F.embedding(i, m.q(m.t)))
        normed = m.a(F.rms_norm(m.a(rows + m.a(F.gelu(rows))), (8,), None, 1e-6))
        return m.p(torch.softmax(m.b(F.linear(normed, m.wq(m.w))), dim=-1))

    w = weight(6, 8, 2)
    parts = {"t": weight(10, 8), "q": Grid("uint8", -1.5, 1.5), "w": w, "wq": channels(w, "sym8")}
    return Graph(fn, IDS, **parts, a=Grid("uint8", -3, 3), b=Grid("uint8", -4, 4), p=Grid("uint8", 0, 1))


@pytest.mark.parametrize("make", [table, layers])
def test_every_length_of_one_file(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()
    program, _ = quantized(graph, [ids(5)], single_layer=False)
    assert program.check() == []
    program.save(tmp_path / "open.circle")
    runtime = tico.Runtime(tmp_path / "open.circle")
    for length in LENGTHS:
        fidelity(program, graph, [ids(length)], runtime="tico")  # its grids divide each other: float32 flips ties
        out = runtime.run([ids(length)])["y"]
        assert out.shape[:2] == (2, length)
        torch.testing.assert_close(out, graph(ids(length)))


def test_signature_in_plan_file_and_description(tmp_path: Path) -> None:
    program = export(table())
    program.save(tmp_path / "open.circle")
    file = circle.read(tmp_path / "open.circle")
    by_name = {t.name: t for t in file.tensors}
    assert by_name["x"].shape_signature == (2, -1)
    assert by_name["x"].shape == (2, 1)
    assert by_name["y"].shape_signature == (2, -1, 8)
    assert all(
        t.shape_signature == () for t in file.tensors if t.name not in ("x", "y") and not t.name.startswith("em")
    )
    assert program.inputs[0].describe()["shape_signature"] == [2, -1]
    assert json.loads(program.graph.to_json())["tensors"][0]["shape_signature"] == [2, -1]


def test_fixed_graphs_have_no_signature() -> None:
    graph = Graph(lambda m, x: m.a(m.a(x) + 1.0), (2, 3), a=Grid("uint8", -3, 3))
    assert "shape_signature" not in export(graph).graph.to_json()


def refused(fn: Callable[..., Any], *specs: Any, **parts: Any) -> None:
    with pytest.raises(ExportError) as raised:
        export(Graph(fn, *specs, a=Grid("uint8", -4, 4), **parts))
    assert "open length" in str(raised.value)
    assert "exporter" in str(raised.value)  # the source line


OPEN = TensorSpec((2, 5, 4), dynamic=1)


@pytest.mark.parametrize(
    "fn",
    [
        lambda m, x: m.a(m.a(x).reshape(10, 4)),
        lambda m, x: m.a(torch.softmax(m.a(m.a(x).transpose(1, 2)), -1)),
        lambda m, x: m.a(m.a(x).mean(1)),
        lambda m, x: m.a(torch.cat([m.a(x), m.a(x)], dim=1)),
    ],
    ids=["reshape", "transpose", "mean", "concat"],
)
def test_operators_without_a_rule(fn: Callable[..., Any]) -> None:
    refused(fn, OPEN)


def test_a_fixed_length_beside_the_open_one() -> None:
    refused(lambda m, x, y: m.a(m.a(x) + m.a(y)), OPEN, (2, 5, 4))
    refused(lambda m, x: m.a(m.a(x) + m.a(m.t)), OPEN, t=torch.ones(5, 4))
    refused(lambda m, x: m.a(torch.softmax(m.a(x), -1)), TensorSpec((2, 5), dynamic=1))
    refused(lambda m, i, x: m.a(m.a(x).index_select(1, i)), TensorSpec((2,), torch.int32), OPEN)


def test_open_beside_open_and_beside_broadcast() -> None:
    graph = Graph(
        lambda m, x, y: m.a(m.a(m.a(x) + m.a(y)) + m.a(m.t)), OPEN, OPEN, t=torch.ones(4), a=Grid("int8", -9, 9)
    )
    program = export(graph)
    for length in LENGTHS:
        fidelity(program, graph, [torch.rand(2, length, 4), torch.rand(2, length, 4)])
    with pytest.raises(InputError, match=r"float32\[2, any, 4\]"):
        fidelity(program, graph, [torch.rand(2, 5, 4), torch.rand(3, 5, 4)])


@pytest.mark.parametrize("axis", [2, -1])
def test_an_axis_that_is_none(axis: int) -> None:
    with pytest.raises(ProfileError, match="dynamic"):
        TensorSpec((2, 5), dynamic=axis)
    with pytest.raises(ProfileError, match="at least 2"):
        TensorSpec((2, 1), dynamic=1)
