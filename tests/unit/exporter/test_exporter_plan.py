# SPDX-License-Identifier: Apache-2.0
"""Profiles, plans, passes, programs and bundles: what they promise apart from any one operator."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, inputs_of, operators, weight
from torch import nn

from pyquant import circle
from pyquant.errors import CircleError, ProfileError
from pyquant.exporter import CircleProgram, ExportProfile, TensorSpec, export, export_bundle
from pyquant.exporter.constant import Constant
from pyquant.exporter.passes import run_passes
from pyquant.exporter.passes.dead import remove_dead
from pyquant.exporter.plan import Graph as Plan
from pyquant.exporter.plan import Op, Quant, Tensor
from pyquant.exporter.registry import LOWERINGS, lowers, names
from pyquant.exporter.tracing import readable
from pyquant.verify.runtimes import tico

X = (2, 3, 8)


def linear_graph() -> Graph:
    w = weight(8, 8)
    return Graph(
        lambda m, x: m.o(F.linear(m.a(x), m.q(m.w))),
        X,
        w=w,
        q=channels(w, "int4"),
        a=Grid("int16", -3, 3),
        o=Grid("int16", -2, 2),
    )


# ---- profiles


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 0), torch.float32, r"every size of a static graph is at least 1, got shape \(2, 0\)"),
        ((2, "n"), torch.float32, r"a TensorSpec shape is a sequence of integers, got \(2, 'n'\)"),
        ((2,), "float", "a TensorSpec dtype is a torch.dtype such as torch.float32, got 'float'"),
    ],
    ids=["zero", "symbol", "dtype"],
)
def test_tensor_spec_refuses(shape: Any, dtype: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        TensorSpec(shape, dtype)


def test_tensor_spec_reads_well_and_gives_an_example() -> None:
    spec = TensorSpec([2, 3], torch.int32)  # type: ignore[arg-type]
    assert (spec.shape, str(spec)) == ((2, 3), "int32[2, 3]")
    assert spec.example().shape == (2, 3)
    assert spec.example().dtype == torch.int32


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": (2, 3)}, ("y",), r"input 'x' needs a TensorSpec\(shape, dtype\), got tuple"),
        ({"x-ray": TensorSpec((2,))}, ("y",), "names are Python identifiers .*, got 'x-ray'"),
        ({"x": TensorSpec((2,))}, ("class",), "got 'class'"),
        ({"x": TensorSpec((2,))}, ("x",), "'x' is used twice"),
        ({"x": TensorSpec((2,))}, (), "at least one output name"),
        (
            {"x": TensorSpec((2,))},
            "logits",
            r"outputs is a tuple of names, got the string 'logits'; write \('logits',\)",
        ),
    ],
    ids=["no_spec", "no_identifier", "keyword", "twice", "no_outputs", "string"],
)
def test_profile_refuses(inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        ExportProfile(inputs, outputs)


def test_profile_is_frozen() -> None:
    given = {"x": TensorSpec((2,))}
    profile = ExportProfile(given, ("y",), name="decode")
    given["z"] = TensorSpec((1,))
    assert list(profile.inputs) == ["x"]
    with pytest.raises(FrozenInstanceError):
        profile.outputs = ("z",)  # type: ignore[misc]
    with pytest.raises(TypeError):
        profile.inputs["z"] = TensorSpec((1,))  # type: ignore[index]


# ---- plans


def test_plan_is_deterministic_and_round_trips_scales() -> None:
    first, second = export(linear_graph()).graph, export(linear_graph()).graph
    assert first.to_json() == second.to_json()
    plan = json.loads(first.to_json())
    assert (plan["format"], plan["version"], plan["signature"]["inputs"]) == ("pyquant-plan", 1, {"x": 0})
    for tensor, written in zip(first.tensors, plan["tensors"], strict=True):
        if tensor.quant is not None:
            assert [float(np.float32(scale)) for scale in written["quant"]["scale"]] == list(tensor.quant.scale)
    weight_entry = next(t for t in plan["tensors"] if t["name"] == "w")
    assert (weight_entry["dtype"], weight_entry["quant"]["axis"], weight_entry["shape"]) == ("int4", 0, [8, 8])


@pytest.mark.parametrize("scale", [0.1, 1e-30, 3.4e38, 1.17549435e-38, 7.0064923e-45, 1 / 3])
def test_scale_text_is_the_shortest_that_reads_back(scale: float) -> None:
    exact = float(np.float32(scale))
    quant = Quant("int8", (exact,), (0,), None, -128, 127)
    plan = Plan("p", (Tensor("x", "int8", (1,), quant),), (), (0,), (0,))
    (written,) = json.loads(plan.to_json())["tensors"][0]["quant"]["scale"]
    assert float(np.float32(written)) == exact
    assert written == float(str(np.float32(scale)))


def test_registry_refuses_duplicates() -> None:
    assert names() == sorted(LOWERINGS)
    with pytest.raises(AssertionError, match=r"aten.linear.default has a lowering already: linear"):
        lowers("aten.linear.default")(lambda cx: None)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("module.encoder.layers.slice(None, 4, None).2.mlp", "encoder.layers.2.mlp"),
        ("layers.slice(1, None, None).0", "layers.1"),
        ("layers.slice(1, 9, 2).3.fc", "layers.7.fc"),
        ("", ""),
    ],
)
def test_module_paths_read_as_the_user_knows_them(path: str, written: str) -> None:
    assert readable(path) == written


# ---- passes


def plan_of(
    *ops: tuple[str, list[int], int, dict[str, Any]], shapes: list[tuple[int, ...]], ints: dict[int, list[int]]
) -> Plan:
    tensors, constants = [], []
    for index, shape in enumerate(shapes):
        if index in ints:
            constants.append(Constant.of(torch.tensor(ints[index], dtype=torch.int32)))
            tensors.append(Tensor(f"t{index}", "int32", (len(ints[index]),), constant=len(constants) - 1))
        else:
            tensors.append(Tensor(f"t{index}", "float32", shape))
    operators_ = tuple(Op(name, tuple(inputs), (out,), options) for name, inputs, out, options in ops)
    return Plan("p", tuple(tensors), operators_, (0,), (ops[-1][2],), tuple(constants))


def kinds(plan: Plan) -> list[str]:
    return [op.op for op in plan.operators]


def test_pass_merges_reshapes() -> None:
    plan = plan_of(
        ("RESHAPE", [0, 1], 2, {"new_shape": [6]}),
        ("RESHAPE", [2, 3], 4, {"new_shape": [3, 2]}),
        shapes=[(2, 3), (), (6,), (), (3, 2)],
        ints={1: [6], 3: [3, 2]},
    )
    done = run_passes(plan)
    assert kinds(done) == ["RESHAPE"]
    assert len(done.tensors) == 3
    assert len(done.constants) == 1


def test_pass_drops_what_cancels_out() -> None:
    plan = plan_of(
        ("TRANSPOSE", [0, 1], 2, {}),
        ("TRANSPOSE", [2, 1], 3, {}),
        ("RESHAPE", [3, 4], 5, {"new_shape": [2, 3]}),
        ("EXP", [5], 6, {}),
        shapes=[(2, 3), (), (3, 2), (2, 3), (), (2, 3), (2, 3)],
        ints={1: [1, 0], 4: [2, 3]},
    )
    done = run_passes(plan)
    assert kinds(done) == ["EXP"]
    assert done.operators[0].inputs == done.inputs


def test_pass_keeps_a_copy_that_is_a_graph_output() -> None:
    plan = plan_of(("RESHAPE", [0, 1], 2, {"new_shape": [2, 3]}), shapes=[(2, 3), (), (2, 3)], ints={1: [2, 3]})
    assert kinds(run_passes(plan)) == ["RESHAPE"]


def test_pass_folds_a_transpose_into_the_matmul_only() -> None:
    flags = {"adjoint_lhs": False, "adjoint_rhs": True}
    plan = plan_of(
        ("TRANSPOSE", [0, 1], 2, {}),
        ("BATCH_MATMUL", [2, 2], 3, flags),
        shapes=[(2, 3), (), (3, 2), (3, 3)],
        ints={1: [1, 0]},
    )
    done = run_passes(plan)
    assert kinds(done) == ["BATCH_MATMUL"]
    assert done.operators[0].options == {"adjoint_lhs": True, "adjoint_rhs": False}


def test_dead_code_goes_but_inputs_stay() -> None:
    plan = plan_of(("EXP", [0], 1, {}), ("NEG", [0], 2, {}), ("ABS", [1], 3, {}), shapes=[(2,)] * 4, ints={})
    plan = plan.replace(inputs=(0,), outputs=(1,))
    done = remove_dead(plan)
    assert kinds(done) == ["EXP"]
    assert [t.name for t in done.tensors] == ["t0", "t1"]
    unread = export(Graph(lambda m, x, y: y + 1.0, X, X), allow_float=True)
    assert [t.name for t in unread.inputs] == ["x", "x1"]


def test_passes_are_linear_in_the_graph() -> None:
    length = 4000
    ops = [("RESHAPE", [i, 0], i + 1, {"new_shape": [1]}) for i in range(1, length)]
    plan = plan_of(*ops, shapes=[(1,)] * (length + 1), ints={0: [1]}).replace(inputs=(1,))
    assert kinds(run_passes(plan)) == ["RESHAPE"]


# ---- outputs


def test_every_output_is_a_tensor_of_its_own() -> None:
    graph = Graph(lambda m, x: (x, y := x + 1.0, y, m.k), X, k=torch.rand(3), outputs=("same", "y", "again", "table"))
    program = export(graph)
    assert [t.name for t in program.outputs] == ["same", "y", "again", "table"]
    assert len(set(program.graph.outputs)) == 4
    got, given = tico.run(program, inputs_of(graph)), inputs_of(graph)
    torch.testing.assert_close(got["same"], given[0])
    torch.testing.assert_close(got["again"], got["y"])
    torch.testing.assert_close(got["table"], graph.k)


# ---- programs


def test_program_says_what_it_is() -> None:
    program = export(linear_graph())
    assert str(program) == "case(x: int16[2, 3, 8]) -> y: int16[2, 3, 8], 1 operators"
    assert program.size == 8 * 8 // 2
    assert program.check() == []
    assert program.missing_qparams() == []
    assert program.inputs[0].describe() == {
        "name": "x",
        "shape": [2, 3, 8],
        "dtype": "int16",
        "quant": {"scale": [pytest.approx(3 / 32767)], "zero_point": [0]},
    }


def test_program_saves_the_same_bytes_each_time(tmp_path: Path) -> None:
    program = export(linear_graph())
    size = program.save(tmp_path / "a.circle")
    data = (tmp_path / "a.circle").read_bytes()
    assert size == len(data)
    assert data == program.to_bytes() == export(linear_graph()).to_bytes()
    assert circle.check(tmp_path / "a.circle") == []


def test_program_refuses_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CircleError, match="E_NO_FOLDER"):
        export(linear_graph()).save(tmp_path / "none" / "a.circle")


def test_export_changes_nothing_in_the_module() -> None:
    graph = linear_graph()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    export(graph)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    assert all(not value.requires_grad or value.grad is None for value in graph.state_dict().values())


# ---- bundles


class Model(nn.Module):
    """Exports a graph for any profile."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = Grid("uint8", -3, 3)

    def as_export_module(self, profile: ExportProfile) -> nn.Module:
        return Graph(lambda m, x: m.a(m.a(x) * 0.5), *profile.inputs.values(), a=self.grid)


def profile(rows: int, name: str = "model") -> ExportProfile:
    return ExportProfile({"x": TensorSpec((rows, 4))}, ("y",), name=name)


def test_bundle_writes_every_graph_and_a_manifest(tmp_path: Path) -> None:
    programs = export_bundle(Model(), tmp_path / "out", {"prefill": profile(8), "decode": profile(1)})
    assert all(isinstance(program, CircleProgram) for program in programs.values())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prefill.circle", "decode.circle", "manifest.json"}
    assert (manifest["format"], manifest["model"], list(manifest["graphs"])) == (
        "pyquant-bundle",
        "Model",
        ["prefill", "decode"],
    )
    entry = manifest["graphs"]["decode"]
    data = (tmp_path / "out" / "decode.circle").read_bytes()
    assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert entry["inputs"][0]["shape"] == [1, 4]
    assert math.isclose(entry["outputs"][0]["quant"]["scale"][0], 6 / 255, rel_tol=1e-6)
    first = (tmp_path / "out" / "manifest.json").read_bytes()
    export_bundle(Model(), tmp_path / "out", {"prefill": profile(8), "decode": profile(1)})
    assert (tmp_path / "out" / "manifest.json").read_bytes() == first


def test_bundle_takes_one_profile_or_a_list(tmp_path: Path) -> None:
    assert list(export_bundle(Model(), tmp_path, profile(2, "one"))) == ["one"]
    assert list(export_bundle(Model(), tmp_path, [profile(2, "a"), profile(3, "b")])) == ["a", "b"]


def test_bundle_refuses(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"\['model'\] is used twice; pass a mapping"):
        export_bundle(Model(), tmp_path, [profile(2), profile(3)])
    with pytest.raises(ProfileError, match=r"at least one profile"):
        export_bundle(Model(), tmp_path, [])
    with pytest.raises(ProfileError, match=r"'../x' becomes a file name"):
        export_bundle(Model(), tmp_path, {"../x": profile(2)})
    with pytest.raises(CircleError, match=r"cannot write a bundle .*none' does not exist; create it first"):
        export_bundle(Model(), tmp_path / "none" / "out", profile(2))


def test_operators_of_a_float_linear_need_no_sites() -> None:
    assert operators(export(Graph(lambda m, x: F.linear(x, m.w), X, w=weight(2, 8)))) == ["FULLY_CONNECTED"]
