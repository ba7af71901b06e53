# SPDX-License-Identifier: Apache-2.0
"""Reading: truncated and corrupted files give a code, files of other writers are checked, views are kept alive."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from circle_schema.v0_10.circle.Model import ModelT

import pyquant.circle
from pyquant.errors import CircleError
from tests.golden import make

GOLDEN = Path(make.__file__).parent
LINEAR = (GOLDEN / "uint8_linear.circle").read_bytes()


def packed(model: ModelT) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"CIR0")
    return bytes(builder.Output())


def parsed() -> ModelT:
    return ModelT.InitFromPackedBuf(LINEAR, 0)


def test_every_truncation_is_an_error() -> None:
    for size in range(len(LINEAR)):
        with pytest.raises(CircleError, match=r"^E_(NOT_CIRCLE|FLATBUFFER): bytes"):
            pyquant.circle.read(LINEAR[:size])


def test_random_corruption_never_crashes() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        data = bytearray(LINEAR)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        try:
            model = pyquant.circle.read(bytes(data))
        except CircleError:
            continue
        pyquant.circle.check(model, "onert")
        json.loads(model.inspect("x", True))
        assert all(isinstance(tensor.name, str) for tensor in model.tensors)
        assert model.diff(model) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "E_NOT_CIRCLE: bytes: has 0 bytes, a Circle file has more"),
        (b"\x00" * 64, "does not carry the identifier CIR0 in bytes 4 to 7; is it a .circle file?"),
        (LINEAR[:4] + b"TFL3" + LINEAR[8:], "E_NOT_CIRCLE"),
        (LINEAR[:400], "E_FLATBUFFER: bytes: flatbuffers' verifier rejects its 400 bytes: truncated or corrupted"),
    ],
    ids=["empty", "zeros", "tflite", "half"],
)
def test_unreadable_bytes(data: bytes, expected: str) -> None:
    with pytest.raises(CircleError) as info:
        pyquant.circle.read(data)
    assert expected in str(info.value)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(
        CircleError, match=r"E_OPEN: .*/x.circle: cannot open for reading \(No such file or directory\)"
    ):
        pyquant.circle.read(tmp_path / "x.circle")


def test_another_writer_of_the_same_model() -> None:
    """Python's flatbuffers lays a file out in another way; the contents are the same."""
    data = packed(parsed())
    assert data != LINEAR
    assert pyquant.circle.check(data) == []
    assert pyquant.circle.diff(data, LINEAR) == []


def edit(change) -> list[str]:
    model = parsed()
    change(model)
    return [fault.code for fault in pyquant.circle.check(packed(model))]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("E_VERSION", lambda m: setattr(m, "version", 3)),
        ("E_SIGNATURE", lambda m: m.subgraphs.append(m.subgraphs[0])),
        ("E_SUBGRAPH_COUNT", lambda m: m.subgraphs.clear()),
        ("E_BUFFER_ZERO", lambda m: setattr(m.buffers[0], "data", np.zeros(3, np.uint8))),
        ("E_BUFFER_ZERO", lambda m: m.buffers.clear()),
        ("E_BUFFER_INDEX", lambda m: setattr(m.subgraphs[0].tensors[1], "buffer", 77)),
        ("E_BUFFER_SIZE", lambda m: setattr(m.buffers[1], "data", np.zeros(5, np.uint8))),
        ("E_OPCODE_INDEX", lambda m: setattr(m.subgraphs[0].operators[0], "opcodeIndex", 9)),
        ("E_OPCODE_FIELDS", lambda m: setattr(m.operatorCodes[2], "deprecatedBuiltinCode", 0)),
        ("E_OPERATOR_UNKNOWN", lambda m: m.operatorCodes[1].__dict__.update(builtinCode=15, deprecatedBuiltinCode=15)),
        (
            "E_OPTIONS_MISSING",
            lambda m: m.subgraphs[0].operators[2].__dict__.update(builtinOptionsType=0, builtinOptions=None),
        ),
        (
            "E_OPTIONS_TYPE",
            lambda m: (
                setattr(m.operatorCodes[2], "builtinCode", 0) or setattr(m.operatorCodes[2], "deprecatedBuiltinCode", 0)
            ),
        ),
        ("E_TENSOR_INDEX", lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [0, 99, -1])),
        ("E_GRAPH_INDEX", lambda m: setattr(m.subgraphs[0], "outputs", [-1])),
        ("E_GRAPH_EMPTY", lambda m: setattr(m.subgraphs[0], "outputs", None)),
        ("E_INPUT_COUNT", lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [0, 1])),
        ("E_TENSOR_KIND", lambda m: setattr(m.subgraphs[0].tensors[3], "isVariable", True)),
        ("E_DTYPE", lambda m: setattr(m.subgraphs[0].tensors[3], "type", 88)),
        ("E_SCALE_NOT_FINITE", lambda m: setattr(m.subgraphs[0].tensors[3].quantization, "scale", [float("nan")])),
        ("E_SCALE_COUNT", lambda m: setattr(m.subgraphs[0].tensors[3].quantization, "zeroPoint", None)),
        ("E_SIGNATURE", lambda m: setattr(m.signatureDefs[0].inputs[0], "tensorIndex", 5)),
    ],
)
def test_faults_of_files(code: str, change) -> None:
    assert code in edit(change)


def test_an_unknown_operator_has_its_schema_name() -> None:
    model = parsed()
    model.operatorCodes[1].builtinCode = model.operatorCodes[1].deprecatedBuiltinCode = 15
    read = pyquant.circle.read(packed(model))
    assert [operator.name for operator in read.operators] == ["FULLY_CONNECTED", "LSH_PROJECTION", "SOFTMAX"]
    assert read.operators[1].options == {}
    assert "LSH_PROJECTION(y, perm) -> t" in pyquant.circle.inspect(read)


def test_external_range_outside_the_file(tmp_path: Path) -> None:
    data = (GOLDEN / "uint8_linear.external.circle").read_bytes()
    faults = pyquant.circle.check(data[:-8])
    assert [fault.code for fault in faults] == ["E_BUFFER_RANGE"]
    assert faults[0].message.endswith("is it truncated?")
    assert pyquant.circle.read(data).external


def test_views_keep_the_model_alive() -> None:
    data = pyquant.circle.read(GOLDEN / "uint8_linear.circle").tensors[1].data
    gc.collect()
    assert data is not None
    assert data.nbytes == 12
    assert bytes(data)[:3] == bytes([0, 161, 69])
    with pytest.raises(TypeError):
        data[0] = 1


def test_names_that_are_not_utf8_are_readable() -> None:
    data = LINEAR.replace(b"perm", b"\xff\xfe\xfd\xfc")
    model = pyquant.circle.read(data)
    assert model.tensors[4].name == "\ufffd" * 4
    json.loads(pyquant.circle.inspect(data, json=True))


def test_objects() -> None:
    model = pyquant.circle.read(GOLDEN / "uint8_linear.circle")
    weight = model.tensors[1]
    assert (weight.name, weight.dtype, weight.shape, weight.axis) == ("w", "uint8", (3, 4), 0)
    assert weight.quantized
    assert weight.zero_point == (0, 128, 255)
    assert np.float32(weight.scale[0]) == np.float32(0.02)
    assert model.operators[0].options["keep_num_dims"] is True
    assert model.operators[0].options["fused_activation_function"] == "NONE"
    assert model.operators[2].options == {"beta": 1.0}
    assert model.signatures == {"serving_default": ({"x": 0}, {"p": 6})}
    assert repr(model.operators[2]).startswith('<Operator {"op": "SOFTMAX"')
    assert repr(weight).startswith('<Tensor {"name": "w"')
    assert pyquant.circle.read(model) is model
