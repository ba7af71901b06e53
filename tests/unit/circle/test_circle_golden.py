# SPDX-License-Identifier: Apache-2.0
"""Golden files: made again byte for byte, and accepted by us, circle-schema, TICO's verifier and flatbuffers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from circle_schema.v0_10.circle.Model import Model, ModelT
from tico.circle.document import CircleDocument

import pyquant.circle
from tests.golden import make

GOLDEN = Path(make.__file__).parent
FILES = sorted(GOLDEN.glob("*.circle"))
ids = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def parsed(path: Path):
    return ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def test_golden_files_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    fresh = make.make(tmp_path)
    assert [path.name for path in sorted(fresh)] == [path.name for path in FILES]
    for path in fresh:
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes(), path.name


@ids
def test_no_faults(path: Path) -> None:
    assert pyquant.circle.check(path) == []
    assert pyquant.circle.check(path.read_bytes()) == []


@ids
def test_tico_verifies(path: Path) -> None:
    report = CircleDocument.load(path).verify()
    assert report.ok
    assert not report.warnings, report.format()


def test_tico_circle_verify_command() -> None:
    command = [Path(sys.executable).with_name("tico-circle"), "verify", GOLDEN / "uint8_linear.circle"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@ids
def test_circle_schema_sees_what_we_see(path: Path) -> None:
    theirs, ours = parsed(path), pyquant.circle.read(path)
    (graph,) = theirs.subgraphs
    assert theirs.version == ours.version == 0
    assert theirs.description.decode() == ours.description
    assert tuple(graph.inputs) == ours.inputs
    assert tuple(graph.outputs) == ours.outputs
    assert [t.name.decode() for t in graph.tensors] == [t.name for t in ours.tensors]
    for their, our in zip(graph.tensors, ours.tensors, strict=True):
        assert tuple(their.shape) == our.shape
        quant = their.quantization
        assert tuple(np.float32(s) for s in (quant.scale if quant else ())) == tuple(np.float32(s) for s in our.scale)
        assert tuple(quant.zeroPoint if quant else ()) == our.zero_point
        buffer = theirs.buffers[their.buffer]
        if our.data is not None and not ours.external:
            assert bytes(buffer.data) == bytes(our.data)
    for their, our in zip(graph.operators, ours.operators, strict=True):
        assert tuple(their.inputs) == our.inputs
        assert theirs.operatorCodes[their.opcodeIndex].builtinCode == our.code
    signature = theirs.signatureDefs[0]
    names = {entry.name.decode(): entry.tensorIndex for entry in signature.inputs}
    assert ours.signatures[signature.signatureKey.decode()][0] == names


@ids
def test_facts_that_runtimes_depend_on(path: Path) -> None:
    data = path.read_bytes()
    model = parsed(path)
    assert data[4:8] == b"CIR0"
    assert model.buffers[0].data is None
    for code in model.operatorCodes:
        assert code.deprecatedBuiltinCode == min(code.builtinCode, 127)
        assert code.version == 1
    table = pyquant.circle.operators()
    by_code = {row.code: row for row in table.values()}
    for operator in model.subgraphs[0].operators:
        row = by_code[model.operatorCodes[operator.opcodeIndex].builtinCode]
        assert (operator.builtinOptions is None) == (row.options_table == "NONE")
        if row.name == "FULLY_CONNECTED":
            assert len(operator.inputs) == 3
    root = Model.GetRootAs(data, 0)
    for index in range(1, root.BuffersLength()):
        table = root.Buffers(index)._tab
        if place := table.Offset(4):
            assert table.Vector(place) % 16 == 0
    for tensor in model.subgraphs[0].tensors:
        assert not tensor.hasRank
        if tensor.quantization is not None:
            assert tensor.quantization.min is None
            assert tensor.quantization.max is None


def test_external_constants_are_read_by_tico() -> None:
    inline = CircleDocument.load(GOLDEN / f"{make.EXTERNAL}.circle").model
    external = CircleDocument.load(GOLDEN / f"{make.EXTERNAL}.external.circle").model
    for a, b in zip(inline.buffers[1:], external.buffers[1:], strict=True):
        assert bytes(a.data) == bytes(b.data)
    raw = parsed(GOLDEN / f"{make.EXTERNAL}.external.circle")
    assert all(buffer.offset % 16 == 0 and buffer.offset > 1 for buffer in raw.buffers[1:])


def test_flatbuffers_own_verifier_accepts() -> None:
    """The reader runs flatbuffers' C++ Verifier before anything else, so a read runs it."""
    for path in FILES:
        pyquant.circle.read(path)
    assert importlib.import_module("pyquant._circle")
