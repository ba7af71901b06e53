# SPDX-License-Identifier: Apache-2.0
"""The checker's target onert against onert itself: every operator with every type, one real run each.

The checker has no fault exactly where onert gives the right answer. Its rules of shapes and constants have tests of
its own below.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onert_ops
import pytest
import torch
from onert_ops import one_op

from pyquant import circle, ops
from pyquant._launch import program
from pyquant.circle import operators
from pyquant.circle import write as circle_write
from pyquant.errors import CircleError, VerifyError
from pyquant.exporter.plan import Graph, Op, Quant, Tensor
from pyquant.verify.runtimes import onert
from tests.onert_blocks import needs_blocks

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

FAMILIES = {"float": ("float32",), "quantized": ("uint8", "int8"), "index": ("int32", "int64"), "bool": ("bool",)}
NO_CASE = {"TOPK_V2"}  # two results of two kinds; the checker refuses it for every type, as onert does
TYPES = {
    name: [dtype for family in row.dtypes for dtype in FAMILIES[family] if family in FAMILIES]
    for name, row in operators().items()
    if name not in NO_CASE
}
CONVERSIONS = [
    ("CAST", a, b) for a in ("float32", "int32", "int64", "bool") for b in ("float32", "int32", "int64", "bool")
]
CONVERSIONS += [("QUANTIZE", a, b) for a in ("float32", "uint8", "int8") for b in ("uint8", "int8")]
CONVERSIONS += [("DEQUANTIZE", a, "float32") for a in ("uint8", "int8")]


def agree(name: str, dtype: str, out: str | None, path: Path) -> None:
    one = one_op(name, dtype, out)
    try:
        one.save(path)
    except CircleError:
        assert name in ("RMS_NORM", "INSTANCE_NORM", "ROPE"), "only these have no quantized form here"
        assert dtype not in operators()[name].onert
        return
    faults, failure = circle.check(path, "onert"), one.failure(path)
    assert bool(faults) == bool(failure), (
        f"{name} {dtype}: onert: {failure or 'right'}; checker: {faults or 'no fault'}"
    )
    if not out:
        assert (dtype in operators()[name].onert) == (not faults)


@pytest.mark.parametrize("name", [name for name in TYPES if name not in {case[0] for case in CONVERSIONS}])
def test_the_table_says_what_onert_does(name: str, tmp_path: Path) -> None:
    for dtype in TYPES[name]:
        agree(name, dtype, None, tmp_path / "one.circle")


@pytest.mark.parametrize("case", CONVERSIONS, ids="-".join)
def test_the_table_says_what_onert_converts(case: tuple[str, str, str], tmp_path: Path) -> None:
    agree(*case, tmp_path / "one.circle")


def test_every_operator_has_a_case() -> None:
    assert set(onert_ops.CASES) == set(operators()) - NO_CASE
    assert operators()["TOPK_V2"].onert == ()


# --- rules of shapes, constants and weights


def graph(op: str, inputs: list[Tensor | torch.Tensor], out: Tensor, **options: object) -> Graph:
    """One operator; a torch tensor is a constant of its own type, a plan Tensor with a constant's number has its data
    in `constants`."""
    tensors, constants, ends = [], [], []
    for place, given in enumerate(inputs):
        if isinstance(given, torch.Tensor):
            dtype = str(given.dtype).removeprefix("torch.")
            constants.append(given)
            tensors.append(Tensor(f"c{place}", dtype, tuple(given.shape), constant=len(constants) - 1))
        else:
            tensors.append(given)
            ends.append(place)
    tensors.append(out)
    return Graph(
        op, tuple(tensors), (Op(op, tuple(range(len(inputs))), (len(inputs),), options),), tuple(ends), (len(inputs),),
        tuple(constants),
    )  # fmt: skip


def x(*shape: int, dtype: str = "float32", name: str = "x") -> Tensor:
    return Tensor(name, dtype, shape)


FC = {"fused_activation_function": "NONE", "weights_format": "DEFAULT", "keep_num_dims": True}
MM = {"adjoint_lhs": False, "adjoint_rhs": False}
W = torch.randn(5, 32)
TABLE = Tensor("t", "ggml_q4_0", (9, 32), constant=0)


def with_blocks(op: str, inputs: list[Tensor], out: Tensor, bits: int, value: torch.Tensor, **options: object) -> Graph:
    """A graph whose input `t` is `value` in blocks."""
    packed = ops.quantize_blocks(value, bits)
    places = tuple(range(len(inputs)))
    ends = tuple(i for i, tensor in enumerate(inputs) if tensor.constant is None)
    done = (Op(op, places, (len(inputs),), options),)
    return Graph(op, (*inputs, out), done, ends, (len(inputs),), (packed,))


REFUSED = {
    "fc_of_blocks_rank_3": (
        with_blocks("FULLY_CONNECTED", [x(2, 3, 32), TABLE, x(9, name="b")], x(2, 3, 9, name="y"), 4,
                    torch.randn(9, 32), **FC),
        "E_ONERT_BIAS E_ONERT_RANK",
    ),
    "fc_of_blocks_with_bias": (
        with_blocks("FULLY_CONNECTED", [x(3, 32), TABLE, x(9, name="b")], x(3, 9, name="y"), 4,
                    torch.randn(9, 32), **FC),
        "E_ONERT_BIAS",
    ),
    "constant_lhs": (graph("BATCH_MATMUL", [W, x(32, 4)], x(5, 4, name="y"), **MM), "E_ONERT_CONSTANT"),
    "matmul_rank_5": (
        graph("BATCH_MATMUL", [x(1, 2, 1, 3, 4), x(1, 2, 1, 4, 3, name="z")], x(1, 2, 1, 3, 3, name="y"), **MM),
        "E_ONERT_RANK",
    ),
    "rms_norm_rank_2": (
        graph("RMS_NORM", [x(6, 32), torch.ones(32)], x(6, 32, name="y"), epsilon=1e-6),
        "E_ONERT_RANK",
    ),
    "q8_table": (
        with_blocks("GATHER", [replace(TABLE, dtype="ggml_q8_0"), x(4, dtype="int32")], x(4, 32, name="y"), 8,
                    torch.randn(9, 32), axis=0, batch_dims=0),
        "E_ONERT_DTYPE",
    ),
    "q4_table_of_longs": (
        with_blocks("GATHER", [TABLE, x(4, dtype="int64")], x(4, 32, name="y"), 4, torch.randn(9, 32), axis=0,
                    batch_dims=0),
        "E_ONERT_DTYPE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_onert_refuses_what_the_checker_refuses(name: str, tmp_path: Path) -> None:
    made, code = REFUSED[name]
    path = tmp_path / "one.circle"
    circle_write(made.to_json(), made.constants, path)
    assert {fault.code for fault in circle.check(path, "onert")} == set(code.split())
    inputs = [torch.zeros(made.tensors[i].shape) for i in made.inputs]
    with pytest.raises(VerifyError):
        onert.run(path, inputs)


@needs_blocks
def test_the_second_row_of_indices_of_a_block_table_is_wrong(tmp_path: Path) -> None:
    value = torch.randn(9, 32)
    made = with_blocks("GATHER", [TABLE, x(2, 3, dtype="int32")], x(2, 3, 32, name="y"), 4, value, axis=0, batch_dims=0)
    circle_write(made.to_json(), made.constants, tmp_path / "one.circle")
    (fault,) = circle.check(tmp_path / "one.circle", "onert")
    assert (fault.code, "only the first row of indices" in fault.message) == ("E_ONERT_WRONG", True)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    got, right = onert.run(tmp_path / "one.circle", [ids])["y"], ops.fake_quantize_blocks(value, 4)[ids]
    assert torch.equal(got[0], right[0])
    assert not torch.equal(got[1], right[1])


def test_rotary_of_several_positions_uses_the_first(tmp_path: Path) -> None:
    sin, cos = torch.rand(1, 1, 3, 8), torch.rand(1, 1, 3, 8)
    made = graph("ROPE", [x(1, 2, 3, 8), sin, cos], x(1, 2, 3, 8, name="y"), mode="GPT_NEOX")
    circle_write(made.to_json(), made.constants, tmp_path / "one.circle")
    assert [fault.code for fault in circle.check(tmp_path / "one.circle", "onert")] == ["E_ONERT_WRONG"]
    given = torch.randn(1, 2, 3, 8)
    got, right = onert.run(tmp_path / "one.circle", [given])["y"], onert_ops._rope(given, sin, cos)
    torch.testing.assert_close(got[:, :, 0], right[:, :, 0])
    assert float((got[:, :, 1:] - right[:, :, 1:]).abs().max()) > 1e-2


def test_per_channel_weights_and_constants_use_the_first_scale(tmp_path: Path) -> None:
    scales = tuple(float(s) for s in torch.tensor([0.01, 0.02, 0.04, 0.08, 0.16]))
    weight = torch.randint(-127, 128, (5, 32), dtype=torch.int8)
    quant = Quant("int8", scales, (0,) * 5, 0, -127, 127)
    weight_tensor = Tensor("w", "int8", (5, 32), quant, constant=0)
    made = Graph(
        "g",
        (x(4, 32), weight_tensor, x(4, 5, name="y")),
        (Op("FULLY_CONNECTED", (0, 1, -1), (2,), FC),),
        (0,),
        (2,),
        (weight,),
    )
    circle_write(made.to_json(), made.constants, tmp_path / "one.circle")
    assert [fault.code for fault in circle.check(tmp_path / "one.circle", "onert")] == ["E_ONERT_WRONG"]
    given = torch.randn(4, 32)
    got, ints = onert.run(tmp_path / "one.circle", [given])["y"], given @ weight.float().T
    assert float((got - ints * scales[0]).abs().max()) < 0.5
    assert float((got - ints * torch.tensor(scales)).abs().max()) > 5


def test_alike_faults_share_a_line(tmp_path: Path) -> None:
    tensors = [x(3, dtype="int32", name=f"v{i}") for i in range(7)]
    made = Graph("g", tuple(tensors), tuple(Op("ABS", (i,), (i + 1,), {}) for i in range(6)), (0,), (6,))
    circle_write(made.to_json(), [], tmp_path / "g.circle")
    done = subprocess.run([program(), "check", "--target", "onert", str(tmp_path / "g.circle")], text=True,
                          capture_output=True, check=False)  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("E_ONERT_DTYPE: operators[0] ABS: input 0 'v0' (int32 [3]) is not computed correctly")
    assert lines[0].endswith("(and 5 more like it: operators[1] ABS, operators[2] ABS, operators[3] ABS, ...)")
    assert lines[1].endswith(": 6 faults for target onert")
    assert circle.listed(circle.check(tmp_path / "g.circle", "onert")) == lines[:1]
    assert circle.listed([]) == []
