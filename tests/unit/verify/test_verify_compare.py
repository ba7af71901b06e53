# SPDX-License-Identifier: Apache-2.0
"""compare(), the report and the tolerances: a right file passes, and a wrong file is named by its operator."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant import ops
from pyquant.errors import InputError
from pyquant.exporter import CircleProgram, TensorSpec, export
from pyquant.verify import OpDiff, OutputDiff, Report, compare, fidelity
from pyquant.verify.runtimes import tico
from pyquant.verify.tolerance import allowed, layer_faults, op_faults


class Layer(nn.Module):
    """quantize, linear, quantize, gelu, quantize: with the float form beside it."""

    name, output_names = "layer", ("hidden", "out")

    def __init__(self, qmin: int = 0, qmax: int = 255) -> None:
        super().__init__()
        self.input_specs = {"x": TensorSpec((4, 16))}
        gen = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(32, 16, generator=gen) / 4)
        self.ends = (qmin, qmax)
        for name, low, high in (("a", -2.0, 2.0), ("h", -4.0, 4.0), ("g", -0.2, 4.0)):
            scale, zero = ops.choose_qparams(torch.tensor(low), torch.tensor(high), qmin, qmax, qmin == -qmax)
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", zero)
        self.register_buffer("w_scale", self.w.detach().abs().amax(1) / 127)
        self.register_buffer("w_zero", torch.zeros(32, dtype=torch.int32))

    def q(self, name: str, x: Tensor) -> Tensor:
        return ops.fake_quantize(x, getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero"), None, 0, *self.ends)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = ops.fake_quantize(self.w, self.w_scale, self.w_zero, 0, 0, -127, 127)
        hidden = self.q("h", F.linear(self.q("a", x), weight))
        return hidden, self.q("g", F.gelu(hidden))

    def reference(self, x: Tensor) -> dict[str, Tensor]:
        hidden = F.linear(x, self.w)
        return {"hidden": hidden.detach(), "out": F.gelu(hidden).detach()}


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(3)).clamp(-1.9, 1.9)


def tampered(program: CircleProgram, index: int, **changes: Any) -> CircleProgram:
    """The same program with one operator's options changed behind its back."""
    graph = program.graph
    op = replace(graph.operators[index], options={**graph.operators[index].options, **changes})
    operators = (*graph.operators[:index], op, *graph.operators[index + 1 :])
    return replace(program, graph=graph.replace(operators=operators))


def test_right_file(layer: Layer, x: Tensor) -> None:
    program = export(layer)
    report = fidelity(program, layer, {"x": x})
    assert report.exported_equal
    assert report.max_lsb <= 1
    assert [(op.op, op.tensor) for op in report.operators] == [("FULLY_CONNECTED", "hidden"), ("GELU", "out")]
    assert [out.name for out in report.outputs] == ["hidden", "out"]
    fidelity(program, None, [x], reference=layer.reference(x))


def test_wrong_operator_is_named(layer: Layer, x: Tensor) -> None:
    wrong = tampered(export(layer), 1, approximate=True)
    assert wrong.check() == []
    layer16 = Layer(-32767, 32767)
    wrong = tampered(export(layer16), 1, approximate=True)
    report = compare(wrong, layer16, [x])
    assert report.worst(1)[0].op == "GELU"
    with pytest.raises(
        AssertionError, match=r"(?s)differs from the eager model:.*operator 1 GELU -> 'out': \d+ LSB.*worst operators"
    ):
        fidelity(wrong, layer16, [x])


def test_wrong_model_is_not_the_exported_one(layer: Layer, x: Tensor) -> None:
    program = export(layer)
    other = Layer()
    other.w.data *= 2
    report = compare(program, other, [x])
    assert not report.exported_equal
    assert "exported program DIFFERS FROM eager" in str(report)
    assert "does not equal the eager model bit for bit" in op_faults(report)[0]


@pytest.mark.parametrize(("qmin", "unequal"), [(-32768, False), (-32767, True)], ids=["as the type", "a step earlier"])
def test_a_grid_that_ends_before_its_type_is_a_difference(qmin: int, unequal: bool) -> None:
    """The runtime saturates where the type does, at -32768."""
    layer = Layer(qmin, 32767)
    layer.h_scale *= 1e-4
    program, x = export(layer), torch.linspace(-1.9, 1.9, 64).reshape(4, 16)
    hidden = compare(program, layer, [x]).outputs[0]
    assert hidden.max_lsb == float(unequal)
    assert (hidden.unequal > 0) == unequal


def test_report_prints_and_is_json(layer: Layer, x: Tensor) -> None:
    report = compare(export(layer), layer, [x])
    text = str(report)
    assert text.startswith("layer: exported program equals eager; 2 operators, max ")
    assert "hidden" in text
    assert "PEIR" in text
    assert text == report.summary()
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["operators"][1]["op"] == "GELU"
    summary = {"name", "exported_equal", "max_lsb", "share_equal", "unchecked", "dtype"}
    assert set(data) == {*summary, "outputs", "operators"}
    assert text.splitlines()[0].endswith("% of elements equal, 0 unchecked")


def output(**changes: Any) -> OutputDiff:
    return replace(OutputDiff("y", 1000, True, 0.0, 0.0, 0.0, 99.0, 0.0, 0, 0), **changes)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"max_lsb": 1.0, "unequal": 900}, ""),
        ({"max_lsb": 3.0, "unequal": 9, "beyond": 1}, ""),
        ({"max_lsb": 2.0, "unequal": 9, "beyond": 2}, "output 'y': 2 LSB, 2 of 1000 elements beyond 1"),
        ({"max_lsb": None, "peir": 1e-6}, ""),
        ({"max_lsb": None, "peir": 1e-3}, "output 'y': PEIR 0.001 of a float output"),
    ],
    ids=["equal", "flips", "one_beyond", "two_beyond", "float_near", "float_far"],
)
def test_layer_tolerance(change: dict[str, Any], fault: str) -> None:
    assert layer_faults(Report("r", (output(**change),), (), 0)) == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        (OpDiff(3, "ADD", "t", 1000, 1.0, 1e-3, 1), ""),
        (OpDiff(3, "ADD", "t", 1000, 1.0, 1e-3, 5), "5 of 1000 elements differ op by op, allowed 1"),
        (OpDiff(3, "ADD", "t", 1000, 2.0, 1e-3, 1), "operator 3 ADD -> 't': 2 LSB"),
        (OpDiff(3, "ADD", "t", 1000, None, 1e-6, 900), ""),
        (OpDiff(3, "ADD", "t", 1000, None, 1e-3, 9), "operator 3 ADD -> 't': relative difference 0.001"),
    ],
    ids=["one_flip", "five_flips", "two_steps", "float_near", "float_far"],
)
def test_operator_tolerance(op: OpDiff, fault: str) -> None:
    assert op_faults(Report("r", (output(),), (op,), 0)) == ([fault] if fault else [])


def test_allowed_flips() -> None:
    assert [allowed(n) for n in (0, 10, 999, 1000, 5000)] == [1, 1, 1, 1, 5]


def test_deep_tolerance_is_a_tenth_of_the_quantization_error(layer: Layer, x: Tensor) -> None:
    wrong = tampered(export(layer), 0, fused_activation_function="RELU")
    with pytest.raises(AssertionError, match=r"output 'hidden': PEIR .* but quantization itself makes only"):
        fidelity(wrong, layer, [x], reference=layer.reference(x))


# ---- the runtime


def test_runtime_takes_programs_paths_and_bytes(layer: Layer, x: Tensor, tmp_path: Path) -> None:
    program = export(layer)
    program.save(tmp_path / "layer.circle")
    first = tico.run(program, [x])
    for source in (tmp_path / "layer.circle", str(tmp_path / "layer.circle"), program.to_bytes()):
        got = tico.run(source, {"x": x.numpy()})
        assert list(got) == ["hidden", "out"]
        assert all(torch.equal(got[name], first[name]) for name in got)


def test_runtime_traces_every_tensor(layer: Layer, x: Tensor) -> None:
    values = tico.run(export(layer), [x], trace=True)
    assert set(values) == {"x", "w", "hidden", "out"}
    assert values["w"].shape == (32, 16)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixels": 0}, r"the graph's inputs are \['x'\], got \['pixels'\]"),
        ([1, 2], r"has 1 inputs \['x'\], got 2 values"),
    ],
    ids=["name", "count"],
)
def test_wrong_inputs(layer: Layer, inputs: Any, message: str) -> None:
    program = export(layer)
    for call in (lambda: tico.run(program, inputs), lambda: compare(program, layer, inputs)):
        with pytest.raises(ValueError, match=message):
            call()


def test_input_of_another_shape_or_type(layer: Layer, x: Tensor) -> None:
    program = export(layer)
    with pytest.raises(ValueError, match=r"input 'x' is torch.float32\[2, 16\], but the graph takes float32\[4, 16\]"):
        compare(program, layer, [x[:2]])
    with pytest.raises(ValueError, match=r"input 'x' is torch.float64"):
        compare(program, layer, [x.double()])


def test_missing_tico_says_how_to_install_it(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tico.circle.runtime", None)
    with pytest.raises(ImportError, match=r"not installed .*pip install 'pyquant-circle\[tico\]'"):
        tico.Runtime(b"")


def test_own_forward_with_another_shape_of_output(layer: Layer, x: Tensor) -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor, keep: Tensor) -> Any:
            return tuple(out[keep] for out in layer(x))

    given = {"x": x, "keep": torch.tensor([True, True, False, True])}
    with pytest.raises(
        InputError, match=r"own forward returns 'hidden' as \[3, 32\], but the graph as \[4, 32\]: .*inputs alone \(x\)"
    ):
        compare(export(layer), Own(), given)
