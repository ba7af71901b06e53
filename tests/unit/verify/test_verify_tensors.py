# SPDX-License-Identifier: Apache-2.0
"""Every tensor of a file against the eager value that it stands for: the tiny Gemma4 model, and a file made wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import pyquant
from pyquant import models
from pyquant.errors import InputError
from pyquant.exporter.constant import Constant
from pyquant.models.gemma4 import VisionProfile
from pyquant.verify import tensors


@pytest.fixture(scope="module")
def program() -> tuple[pyquant.CircleProgram, torch.Tensor]:
    fp = models.by_name("gemma4").example.tiny_model()
    batch = models.by_name("gemma4").example.example_inputs(fp)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return pyquant.export(q, VisionProfile(grid=(8, 8), batch_size=1)), batch["pixel_values"]


def test_every_tensor_is_within_a_few_steps_of_eager(program: tuple[pyquant.CircleProgram, torch.Tensor]) -> None:
    prog, pixels = program
    found = tensors(prog, [pixels])
    made = {prog.graph.tensors[i].name for op in prog.graph.operators for i in op.outputs}
    assert {row.name for row in found.tensors} | set(found.unchecked) == made | {prog.inputs[0].name}
    assert len(found.tensors) > len(found.unchecked)
    assert found.tensors[0].op == "input"
    assert found.tensors[0].unequal == 0
    for row in found.tensors:
        assert row.scale is not None, row
        assert row.max_lsb is not None
        assert row.max_lsb <= 3, row  # a half that rounds the other way, carried on
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["name"] == prog.name
    assert found.worst(1)[0].peir == max(row.peir for row in found.tensors)


def test_a_wrong_constant_shows_where_it_begins(program: tuple[pyquant.CircleProgram, torch.Tensor]) -> None:
    prog, pixels = program
    graph = prog.graph
    number, op = next((n, op) for n, op in enumerate(graph.operators) if op.op == "FULLY_CONNECTED" and n > 5)
    weight = graph.tensors[op.inputs[1]]
    constants = list(graph.constants)
    constants[weight.constant] = Constant.of(torch.zeros_like(constants[weight.constant].tensor()))
    bad = dataclasses.replace(prog, graph=dataclasses.replace(graph, constants=tuple(constants)))
    before, after = tensors(prog, [pixels]), tensors(bad, [pixels])
    first = next(b.name for a, b in zip(before.tensors, after.tensors, strict=True) if a.sqnr_db - b.sqnr_db > 10)
    assert first == graph.tensors[op.outputs[0]].name
    assert number > 5


def test_a_file_in_the_place_of_the_program(
    program: tuple[pyquant.CircleProgram, torch.Tensor], tmp_path: Path
) -> None:
    prog, pixels = program
    good = tmp_path / "good.circle"
    prog.save(good)
    assert tensors(prog, [pixels], good) == tensors(prog, [pixels])
    graph = prog.graph
    op = next(op for n, op in enumerate(graph.operators) if op.op == "FULLY_CONNECTED" and n > 5)
    weight = graph.tensors[op.inputs[1]]
    constants = list(graph.constants)
    constants[weight.constant] = Constant.of(torch.zeros_like(constants[weight.constant].tensor()))
    bad = dataclasses.replace(prog, graph=dataclasses.replace(graph, constants=tuple(constants)))
    found = tensors(prog, [pixels], bad.to_bytes())
    assert [row.name for row in found.constants] == [weight.name]
    assert found.constants[0].op == "constant"
    assert found.constants[0].unequal > 0
    assert found.most_steps(1)[0].max_lsb == max(row.max_lsb for row in found.tensors if row.max_lsb is not None)
    first = next(row for row in found.tensors if (row.max_lsb or 0) > 3)
    assert first.name == graph.tensors[op.outputs[0]].name
    other = Path(__file__).parents[2] / "golden" / "uint8_linear.circle"
    with pytest.raises(InputError, match="exported from this model"):
        tensors(prog, [pixels], other)


def test_a_file_of_other_shapes_is_refused() -> None:
    """A bundle's head takes the same input for one token: TICO's own error came through as a traceback."""
    fp = models.by_name("gemma4").example.tiny_model()
    batch = models.by_name("gemma4").example.example_inputs(fp)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    square, wide = (pyquant.export(q, VisionProfile(grid=grid)) for grid in ((8, 8), (8, 4)))
    with pytest.raises(InputError, match=r"pixel_values \[1, 32, 48\].*pixel_values \[1, 64, 48\]"):
        tensors(square, [batch["pixel_values"]], wide.to_bytes())
