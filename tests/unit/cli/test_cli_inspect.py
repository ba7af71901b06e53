# SPDX-License-Identifier: Apache-2.0
"""`pyquant inspect` and `pyquant compare` of .circle files: what the tables say is what the file holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Done

from pyquant import circle
from tests.golden import make

Run = Callable[..., Done]
GOLDEN = Path(make.__file__).parent
FILES = sorted(GOLDEN.glob("*.circle"))


def section(text: str, title: str) -> list[list[str]]:
    """The rows of a table, cells by two spaces or more."""
    block = text.split(f"\n{title}\n", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in block[2:]]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_tensor_and_operator_has_a_row(file: Path, run: Run) -> None:
    done = run("inspect", file)
    assert done.code == 0, done.err
    model = circle.read(file)
    assert f"{len(model.tensors)} tensors" in done.out
    assert len(section(done.out, "tensors")) == len(model.tensors)
    assert len(section(done.out, "operators")) == len(model.operators)
    total = sum(int(row[2]) for row in section(done.out, "constants by type"))
    buffers = {t.buffer: t.data.nbytes for t in model.tensors if t.data is not None}
    assert total == sum(buffers.values())


def test_the_table_as_it_is(program: Run) -> None:
    done = program("inspect", GOLDEN / "uint8_linear.circle", "--top", 1)
    assert done.code == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "0 x input uint8 2x4 0.0625 3" in lines
    assert "1 w constant uint8 3x4 0.02 .. 0.05 (3) 0 .. 255 (3) 0 12" in lines
    assert "6 p output uint8 3x2 0.00392157 0" in lines
    assert "biggest constants (1 of 3)" in lines
    assert "int32 2 20 62.5 %" in lines
    assert any(line.startswith("0 FULLY_CONNECTED x, w, b y fused_activation_function=NONE") for line in lines)


def test_json_is_that_of_the_native_program(run: Run) -> None:
    file = GOLDEN / "uint8_linear.circle"
    data = json.loads(run("inspect", file, "--json").out)
    assert data == json.loads(circle.inspect(file, json=True))
    assert [tensor["name"] for tensor in data["tensors"]][:2] == ["x", "w"]


def test_some_tensors_and_a_summary(run: Run) -> None:
    file = GOLDEN / "uint8_linear.circle"
    assert len(section(run("inspect", file, "--tensors", "[xw]").out, "tensors")) == 2
    short = run("inspect", file, "--summary").out
    assert "\ntensors\n" not in short
    assert "operators by name" in short
    done = run("inspect", file, "--tensors", "nothing*")
    assert done.code == 2
    assert "matches none of the 7 tensors; names look like 'x', 'w', 'b'" in done.err
    assert run("inspect", file, "--top", "-1").code == 2


def test_files_that_are_none(run: Run, tmp_path: Path) -> None:
    assert run("inspect", tmp_path / "none.circle").code == 2
    (tmp_path / "x.circle").write_bytes(b"")
    done = run("inspect", tmp_path / "x.circle")
    assert done.code == 2
    assert "CircleError" in done.err


def test_two_circle_files(run: Run) -> None:
    a, b = GOLDEN / "uint8_linear.circle", GOLDEN / "float_mlp.circle"
    same = run("compare", a, a)
    assert (same.code, same.out) == (0, "the files are equal\n")
    other = run("compare", a, b)
    assert other.code == 1
    assert "name: uint8_linear -> float_mlp" in other.out
    assert run("compare", a, "trace.json").code == 2
    assert "for .circle files any difference" in run("compare", a, b, "--fail-above", "PEIR=1").err
