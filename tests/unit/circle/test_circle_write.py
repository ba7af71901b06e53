# SPDX-License-Identifier: Apache-2.0
"""Writing from Python: bytes arrive as they are, the same each time, and a bad input is an error of one line.

Each error text is read: the code, what was seen, where, and that the old file is intact.
"""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import pyquant.circle
from pyquant.errors import CircleError, OpArgumentError
from pyquant.exporter.constant import Constant
from pyquant.ops import circle_write
from tests.golden.build import PlanBuilder
from tests.golden.make import constants_of_every_type, uint8_linear


def test_meta_kernel_writes_nothing(tmp_path: Path) -> None:
    with FakeTensorMode():
        assert torch.ops.pyquant.circle_write.default("{}", [torch.zeros(1)], str(tmp_path / "x")) == 0
    assert os.listdir(tmp_path) == []


def test_the_operator_and_constants_that_are_made_late_give_the_same_bytes(tmp_path: Path) -> None:
    builder = constants_of_every_type()
    circle_write(builder.text(), builder.constants, tmp_path / "operator.circle")
    late = [Constant(c.dtype, tuple(c.shape), lambda c=c: c) for c in builder.constants]  # type: ignore[misc]
    pyquant.circle.write(builder.text(), late, tmp_path / "late.circle")
    assert (tmp_path / "late.circle").read_bytes() == (tmp_path / "operator.circle").read_bytes()


def test_constants_arrive_as_they_are(tmp_path: Path) -> None:
    builder = constants_of_every_type()
    size = pyquant.circle.write(builder.text(), builder.constants, tmp_path / "x.circle")
    model = pyquant.circle.read(tmp_path / "x.circle")
    assert size == model.file_size == (tmp_path / "x.circle").stat().st_size
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for name, index in builder.index.items():
        entry = builder.plan["tensors"][index]
        if "constant" in entry:
            data = tensors[name].data
            assert data is not None
            assert data.readonly
            assert bytes(data) == builder.constants[entry["constant"]].view(torch.uint8).numpy().tobytes()
        else:
            assert tensors[name].data is None
    assert tensors["twin"].buffer == tensors["c_float32"].buffer
    assert tensors["batch"].shape_signature == (-1, 3)
    assert model.metadata["note"].decode() == "metadata is text: \u00e9 \u20ac"


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    builder = PlanBuilder("strided")
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    builder.tensor("x", "float32", [1, 3])
    builder.tensor("w", "float32", [4, 3], data=weight.t())
    builder.tensor("y", "float32", [1, 4])
    builder.op("FULLY_CONNECTED", ["x", "w", None], ["y"], keep_num_dims=True)
    builder.graph(["x"], ["y"])
    pyquant.circle.write(builder.text(), builder.constants, tmp_path / "x.circle")
    data = pyquant.circle.read(tmp_path / "x.circle").tensors[1].data
    np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(4, 3), weight.detach().t().numpy())


def test_no_constants(tmp_path: Path) -> None:
    builder = PlanBuilder("neg")
    builder.tensor("x", "float32", [2])
    builder.tensor("y", "float32", [2])
    builder.op("NEG", ["x"], ["y"])
    builder.graph(["x"], ["y"])
    assert pyquant.circle.write(builder.text(), [], tmp_path / "x.circle") > 0


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    builder = uint8_linear()
    files = [tmp_path / name for name in ("a.circle", "b.circle")]
    for path in files:
        pyquant.circle.write(builder.text(), builder.constants, path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_model_outlives_its_file_object(tmp_path: Path) -> None:
    builder = uint8_linear()
    pyquant.circle.write(builder.text(), builder.constants, tmp_path / "x.circle")
    data = pyquant.circle.read(tmp_path / "x.circle").tensors[1].data
    (tmp_path / "x.circle").unlink()
    assert bytes(data) == builder.constants[0].numpy().tobytes()


def error_of(change: Callable[[PlanBuilder], Any], path: Path) -> str:
    builder = uint8_linear()
    change(builder)
    with pytest.raises(CircleError) as info:
        pyquant.circle.write(builder.text(), builder.constants, path)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_a_dangling_tensor_index(tmp_path: Path) -> None:
    def change(b: PlanBuilder) -> None:
        b.plan["operators"][1]["inputs"][0] = 42

    text = error_of(change, tmp_path / "x.circle")
    assert re.match(
        r"E_TENSOR_INDEX: operators\[1\] TRANSPOSE, input 0: tensor 42 does not exist; there are 7 tensors", text
    )
    assert os.listdir(tmp_path) == []


def test_a_constant_of_the_wrong_size(tmp_path: Path) -> None:
    def change(b: PlanBuilder) -> None:
        b.constants[0] = b.constants[0][:2]

    text = error_of(change, tmp_path / "x.circle")
    assert "E_BUFFER_SIZE: tensors[1] 'w': its buffer has 8 bytes, uint8 [3, 4] needs 12" in text


def test_a_constant_that_is_not_given(tmp_path: Path) -> None:
    text = error_of(lambda b: b.constants.pop(), tmp_path / "x.circle")
    assert text == "E_CONSTANT_INDEX: tensors[4] 'perm': constant 2 does not exist; 2 constants were given"


def test_a_constant_that_nobody_names(tmp_path: Path) -> None:
    text = error_of(lambda b: b.constants.append(torch.zeros(1)), tmp_path / "x.circle")
    assert text == "E_CONSTANT_UNUSED: constants[3]: no tensor of the plan names it; leave it out"


def test_a_scale_that_is_zero(tmp_path: Path) -> None:
    def change(b: PlanBuilder) -> None:
        b.plan["tensors"][3]["quant"]["scale"] = [0.0]

    text = error_of(change, tmp_path / "x.circle")
    assert text.startswith("E_SCALE_NOT_POSITIVE: tensors[3] 'y'.scale[0]: is 0")


def test_a_scale_that_is_nan(tmp_path: Path) -> None:
    def change(b: PlanBuilder) -> None:
        b.plan["tensors"][3]["quant"]["scale"] = [float("nan")]

    assert "(JSON has no NaN or Infinity)" in error_of(change, tmp_path / "x.circle")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("", "E_JSON_SYNTAX: plan, line 1, column 1: saw the end of the text, expected a value"),
        (
            '{"format": "pyquant-plan",\n "version": 1,}',
            "E_JSON_SYNTAX: plan, line 2, column 15: saw '}', expected a key",
        ),
        ("[]", "E_PLAN_TYPE: plan, line 1, column 1, plan: saw an array, expected an object"),
        ('{"format": "onnx"}', 'E_PLAN_FORMAT: plan, line 1, column 12, format: not a plan: expected "format"'),
        ('{"format": "pyquant-plan", "version": 7}', "saw version 7, expected 1"),
        (
            '{"format": "pyquant-plan", "version": 1}',
            "E_PLAN_KEY: plan, line 1, column 1, plan: key 'tensors' is missing",
        ),
    ],
    ids=["empty", "comma", "array", "format", "version", "keys"],
)
def test_bad_plan_text(plan: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CircleError, match=re.escape(expected)):
        pyquant.circle.write(plan, [], tmp_path / "x.circle")


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    text = error_of(lambda b: None, tmp_path / "missing" / "x.circle")
    assert text == (
        f"E_NO_FOLDER: {tmp_path}/missing/x.circle: folder '{tmp_path}/missing' does not exist; create it first"
    )


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    assert "E_CREATE" in error_of(lambda b: None, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "E_CREATE" in error_of(lambda b: None, tmp_path / "x.circle")
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: write() fails half way, without privileges."""
    path = tmp_path / "x.circle"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        text = error_of(lambda b: None, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert text.startswith(f"E_WRITE: {path}: writing failed after ")
    assert text.endswith("what stood there before is intact")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.circle"]


def test_faults_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.circle"
    path.write_bytes(b"old")
    text = error_of(lambda b: b.plan.update(outputs=[99]), path)
    assert text.endswith(f"{path} was not written")
    assert path.read_bytes() == b"old"


def test_constants_that_are_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(OpArgumentError, match=r"constants\[0\] is ndarray; expected a torch.Tensor"):
        pyquant.circle.write("{}", [np.zeros(1)], tmp_path / "x.circle")  # type: ignore[list-item]
    with pytest.raises(OpArgumentError, match=r"constants\[0\] is ndarray"):
        circle_write("{}", [np.zeros(1)], tmp_path / "x.circle")  # type: ignore[list-item]


def test_check_plan_finds_what_write_would_refuse() -> None:
    builder = uint8_linear()
    sizes = [constant.nbytes for constant in builder.constants]
    assert pyquant.circle.check_plan(builder.text(), sizes) == []
    builder.plan["tensors"][3]["quant"]["zero_point"] = [256]
    (fault,) = pyquant.circle.check_plan(json.dumps(builder.plan), sizes)
    assert fault.code == "E_ZERO_POINT_RANGE"
    assert str(fault) == "E_ZERO_POINT_RANGE: tensors[3] 'y'.zero_point[0]: is 256, expected 0 to 255 for uint8"
    with pytest.raises(CircleError, match="target 'tflite' is unknown, expected one of circle, luci, onert"):
        pyquant.circle.check_plan(builder.text(), sizes, "tflite")  # type: ignore[arg-type]
