# SPDX-License-Identifier: Apache-2.0
"""What export refuses, and the words that it uses: seen, expected, where, next step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.fx.config as fx_config
import torch.nn.functional as F
from exporter_cases import Graph, Grid, channels, weight
from torch import nn

import pyquant
from pyquant import PerGroup, Policy, QuantSpec, Rule, ops
from pyquant.errors import ExportError, PhaseError, ProfileError
from pyquant.exporter import ExportProfile, TensorSpec, export
from pyquant.spec import INT4, UINT8

X = (2, 3, 8)


def u8(low: float = -3, high: float = 3) -> Grid:
    return Grid("uint8", low, high)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(torch.special.i0(x))


def test_unknown_operators_are_listed_all_at_once() -> None:
    graph = Graph(lambda m, x: torch.cumsum(m.layers[1](x), -1), X, layers=nn.ModuleList([nn.Identity(), Inner()]))
    with pytest.raises(ExportError) as error:
        export(graph)
    text = str(error.value)
    assert text.startswith("3 operator(s) have no Circle form here:")
    assert "aten.erfinv.default in module 'layers.1', " in text
    assert "test_exporter_errors.py:" in text
    assert "return torch.erfinv(torch.special.i0(x))" in text
    assert "aten.special_i0.default in module 'layers.1'" in text
    assert "aten.cumsum.default in the root module" in text
    assert "registry.names()" in text


def test_source_lines_are_recorded_for_a_message_alone() -> None:
    """They are a quarter of the time of an export. A refused graph is traced twice."""
    former = getattr(fx_config, "do_not_emit_stack_traces", None)
    if former is None:
        pytest.skip("this torch always records them")
    program = export(Graph(lambda m, x: m.a(x), X, a=u8()))
    called = [node for node in program.traced.nodes if node.op == "call_function"]
    assert called
    assert not any(node.meta.get("stack_trace") for node in called)
    assert fx_config.do_not_emit_stack_traces == former


def test_unknown_operator_comes_with_advice() -> None:
    graph = Graph(lambda m, x: F.scaled_dot_product_attention(x, x, x), X)
    with pytest.raises(ExportError, match="use eager attention"):
        export(graph)


LEFT_FLOAT: dict[str, tuple[Callable[..., Any], dict[str, Any], list[str]]] = {
    "result_without_site": (
        lambda m, x: m.a(x).exp(),
        {},
        ["'y' (EXP, ", "no fake_quantize follows it; it goes to 'output' as it is"],
    ),
    "input_without_site": (lambda m, x: m.a(x * 2.0), {}, ["'x' (graph input, ", "it goes to 'mul' as it is"]),
    "value_also_used_raw": (
        lambda m, x: m.a(F.gelu(m.b(x))) * 2.0 + F.gelu(m.b(x)),
        {},
        ["no fake_quantize follows it"],
    ),
    "constant_without_site": (
        lambda m, x: m.a(m.a(x) + m.std),
        {"std": torch.rand(8)},
        ["'std' (constant read by ADD, ", "a constant without a site", "but computed from float: std"],
    ),
    "unequal_cat_without_site": (
        lambda m, x: torch.cat([m.a(x), m.b(m.a(x))], -1),
        {},
        ["'y' (CONCATENATION", "joins unequal grids (uint8 scale", "share one site, or add one on the result"],
    ),
    "silu": (lambda m, x: m.a(F.silu(m.a(x))), {}, ["(LOGISTIC", "write x * sigmoid(x), with a site on the sigmoid"]),
    "layer_norm": (lambda m, x: m.a(F.layer_norm(m.a(x), (8,))), {}, ["(RSQRT", "its wrapper must write the steps"]),
    "bias_without_site": (
        lambda m, x: m.a(F.linear(m.a(x), m.wq(m.w), m.k)),
        {"w": weight(8, 8), "wq": channels(weight(8, 8), "sym8"), "k": torch.rand(8)},
        ["'k' (constant read by FULLY_CONNECTED"],
    ),
    "per_row_table": (
        lambda m, x: m.a(F.embedding(m.i, m.tq(m.t)) + m.a(x)),
        {"i": torch.tensor([0, 1]), "t": weight(4, 8), "tq": channels(weight(4, 8), "sym8")},
        [],
    ),
}


@pytest.mark.parametrize("name", [name for name in LEFT_FLOAT if name != "per_row_table"])
def test_float_tensor_left_in_a_fully_quantized_graph(name: str) -> None:
    fn, parts, expected = LEFT_FLOAT[name]
    graph = Graph(fn, X, a=u8(), b=u8(-1, 1), **parts)
    with pytest.raises(ExportError) as error:
        export(graph)
    text = str(error.value)
    assert "float tensor(s) remain in the fully quantized graph 'case'" in text
    assert "declare in the policy that it stays float" in text
    assert "test_exporter_errors.py" in text or "exporter_cases.py" in text
    for part in expected:
        assert part in text
    export(graph, allow_float=True).to_bytes()  # the same graph is valid where floats are allowed


def test_two_grids_on_one_float_value() -> None:
    graph = Graph(lambda m, x: (m.a(y := F.gelu(m.a(x))), m.b(y)), X, a=u8(), b=u8(-1, 1), outputs=("y", "z"))
    with pytest.raises(ExportError, match=r"it is fake-quantized on different grids: uint8 scale .* and uint8 scale"):
        export(graph)


def test_quantized_and_raw_use_of_one_float_value() -> None:
    graph = Graph(lambda m, x: m.a(y := F.gelu(m.a(x))) + y, X, a=u8())
    with pytest.raises(ExportError, match=r"it is fake-quantized \(uint8.*\), but also used as it is by 'add'"):
        export(graph)


def test_per_row_embedding() -> None:
    graph = Graph(
        lambda m, i: m.a(F.embedding(i, m.q(m.t))),
        TensorSpec((3,), torch.int32),
        t=weight(4, 8),
        q=channels(weight(4, 8), "sym8"),
        a=u8(),
    )
    with pytest.raises(
        ExportError, match=r"a scale per channel, which a gathered value cannot keep; use PerTensor\(\)"
    ):
        export(graph)


def test_unused_input_is_reported() -> None:
    with pytest.raises(ExportError, match=r"'x1' \(graph input, .*nothing reads it"):
        export(Graph(lambda m, x, y: m.a(x), X, X, a=u8()))


def wide(m: Graph, x: torch.Tensor) -> torch.Tensor:
    return ops.fake_quantize(x, m.a.scale, m.a.zero_point, None, 0, -3, 3)


def wrong_bias(m: Graph, x: torch.Tensor) -> torch.Tensor:
    bias = ops.fake_quantize_bias(m.k, m.wq.scale * 0.5, 32)
    return m.a(F.linear(m.a(x), m.wq(m.w), bias))


def inner_softmax(m: Graph, x: torch.Tensor) -> torch.Tensor:
    return m.a(F.softmax(m.a(x), 1))


W = weight(8, 8)
REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "groups": (
        lambda m, x: m.a(F.linear(m.a(x), m.g(m.w))),
        {"g": Grid("sym8", -torch.ones(8, 2), torch.ones(8, 2), 1, 4)},
        r"^constant 'w' is quantized in groups of 4.*give this weight PerAxis\(0\)",
    ),
    "per_channel_activation": (
        lambda m, x: m.g(x),
        {"g": Grid("sym8", -torch.ones(8), torch.ones(8), 2)},
        r"^a value of module 'g' quantizes an activation per channel \(axis 2\).*PerTensor\(\)",
    ),
    "no_such_type": (
        wide,
        {},
        r"no Circle type is \[-3, 3\] of a value of .*module \(node 'fake_quantize', .*known: \[-7, 7\] int4",
    ),
    "weight_axis": (
        lambda m, x: m.a(F.linear(m.a(x), m.g(m.w))),
        {"g": Grid("sym8", -torch.ones(8), torch.ones(8), 1)},
        r"aten.linear.default .*one scale per input channel \(axis 1\).*use PerAxis\(0\)",
    ),
    "bias_scale": (wrong_bias, {"k": torch.ones(8)}, "the bias has scale .*but input scale x weight scale is"),
    "softmax_dim": (inner_softmax, {}, "SOFTMAX runs over the last dimension, got dim 1 of rank 3"),
    "infinite_number": (lambda m, x: m.a(m.a(x) * -torch.inf), {}, "not a finite float32"),
    "rounded_division": (
        lambda m, x: torch.div(x, 2, rounding_mode="floor"),
        {},
        "rounding_mode='floor' has no Circle",
    ),
    "vector_product": (
        lambda m, x: x @ m.k,
        {"k": torch.ones(8)},
        r"takes matrices, got shapes \(2, 3, 8\) and \(8,\)",
    ),
    "two_index_tensors": (
        lambda m, x: x[m.i, m.i],
        {"i": torch.tensor([0, 1])},
        "indexing takes one integer tensor",
    ),
    "two_dimensional_norm": (lambda m, x: F.rms_norm(x, (3, 8)), {}, r"normalized_shape \[3, 8\]; flatten first"),
    "conv_groups": (
        lambda m, x: F.conv2d(x.reshape(1, 4, 3, 4), m.k, groups=2),
        {"k": torch.ones(4, 2, 1, 1)},
        r"groups=2 of 4 channels has no Circle form: 1 \(CONV_2D\) and 4 \(DEPTHWISE_CONV_2D\) have",
    ),
    "conv_weight_axis": (
        lambda m, x: m.a(F.conv2d(m.a(x.reshape(1, 4, 3, 4)), m.g(m.k))),
        {"k": torch.ones(5, 4, 1, 1), "g": Grid("sym8", -torch.ones(4), torch.ones(4), 1)},
        r"scales along axis 1; a convolution has one for each filter: PerAxis\(0\)",
    ),
    "conv_weight_computed": (
        lambda m, x: F.conv2d(x.reshape(1, 4, 3, 4), x.reshape(1, 4, 3, 4)),
        {},
        "the filters of a convolution are constants",
    ),
    "pad_of_ones": (lambda m, x: F.pad(x, (1, 1), value=1.0), {}, r"PAD adds zeros, got .*value = \[1.0\]"),
    "pad_reflected": (lambda m, x: F.pad(x, (1, 1), mode="reflect"), {}, "PAD adds zeros, got mode = 'reflect'"),
    "pad_less": (lambda m, x: F.pad(x, (-1, 1)), {}, r"PAD adds zeros, got .*\[-1, 1\]"),
    "float64": (lambda m, x: x.double(), {}, "gives torch.float64; Circle has float32"),
    "data_dependent_shape": (lambda m, x: x[x > 0], {}, r"(?s)aten.sym_size.int in .*take it from the profile"),
    "no_tensor": (lambda m, x: (x + 1.0, 3), {"outputs": ("y", "z")}, "output 'z' is 3, no tensor"),
    "mixed_channels": (
        lambda m, x: m.a(m.a(x) + m.wq(m.w).reshape(4, 16)[0, :8]),
        {},
        r"aten.reshape.default mixes the channels of 'w', which is quantized per channel",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fn, parts, message = REFUSED[name]
    parts = {"w": W, "wq": channels(W, "sym8"), **parts}
    with pytest.raises(ExportError, match=message):
        export(Graph(fn, X, a=u8(), **parts))


def test_active_dropout() -> None:
    graph = Graph(lambda m, x: F.dropout(x, 0.5, True), X)
    with pytest.raises(ExportError, match=r"dropout is active; call model.eval\(\)"):
        export(graph)


def test_computed_scale() -> None:
    graph = Graph(lambda m, x: ops.fake_quantize(x, x.abs().amax(), m.a.zero_point, None, 0, 0, 255), X, a=u8())
    with pytest.raises(ExportError, match=r"computed from the graph's inputs .*convert\(\) the model"):
        export(graph)


class Stateful(nn.Module):
    name, output_names = "stateful", ("y",)

    def __init__(self) -> None:
        super().__init__()
        self.input_specs = {"x": TensorSpec((2,))}
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total + 1


def test_state_is_refused() -> None:
    with pytest.raises(
        ExportError,
        match=r"(?s)aten.add_.Tensor in the root module, .*no state; return a new value instead of changing one",
    ):
        export(Stateful())


class Branch(nn.Module):
    name, output_names = "branch", ("y",)
    input_specs = {"x": TensorSpec((2,))}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool((x > 0).all()) else -x


def test_data_dependent_branch() -> None:
    with pytest.raises(
        ExportError, match=r"Branch\(x: float32\[2\]\) has no static graph.*(?s:.)*precompute it in as_export_module"
    ):
        export(Branch())


class FakeSite(nn.Module):
    path = "layers.0:act_in"

    def __init__(self, phase: str, spec: object = "int8") -> None:
        super().__init__()
        self.phase, self.spec = phase, spec


@pytest.mark.parametrize("phase", ["CALIBRATE", "FLOAT"])
def test_export_before_convert(phase: str) -> None:
    graph = Graph(lambda m, x: x + 1.0, X, site=FakeSite(phase))
    with pytest.raises(PhaseError, match=rf"site 'layers.0:act_in' is in phase {phase}; run pyquant.convert\(q\)"):
        export(graph)
    if phase == "FLOAT":
        assert export(graph, allow_float=True).missing_qparams() == ["x", "scalar_1", "y"]


def test_policy_that_leaves_a_site_float_allows_floats() -> None:
    graph = Graph(lambda m, x: m.a(x) + 1.0, X, a=u8(), site=FakeSite("QUANTIZED", None))
    assert export(graph).missing_qparams() == ["scalar_1", "y"]
    graph.site.spec = "int8"
    with pytest.raises(ExportError, match="fully quantized"):
        export(graph)


def test_what_is_not_a_model() -> None:
    with pytest.raises(
        ExportError, match=r"Linear is neither a quantized model \(as_export_module\) nor an export adapter"
    ):
        export(nn.Linear(2, 2))
    with pytest.raises(ExportError, match=r"export takes a module from pyquant.prepare, got str"):
        export("model")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="target 'tflite' is not known; choose one of circle, luci, onert"):
        export(Graph(lambda m, x: x + 1.0, X), target="tflite")  # type: ignore[arg-type]


class NeedsProfile(nn.Module):
    def as_export_module(self, profile: object) -> nn.Module:
        return self


def test_missing_profile_and_adapter_without_interface() -> None:
    with pytest.raises(ProfileError, match="NeedsProfile needs a profile: an ExportProfile, or the model's own"):
        export(NeedsProfile())
    with pytest.raises(ProfileError, match=r"NeedsProfile is no export adapter: it needs input_specs"):
        export(NeedsProfile(), "profile")


def test_interface_that_contradicts_the_model() -> None:
    with pytest.raises(ProfileError, match=r"names 2 outputs \['y', 'z'\], but returns 1"):
        export(Graph(lambda m, x: x + 1.0, X, outputs=("y", "z")))


def test_target_rules_are_an_error() -> None:
    w = weight(4, 8)
    graph = Graph(lambda m, x: m.a(F.linear(m.a(x), m.q(m.w))), X, a=Grid("int16", -3, 3), w=w, q=channels(w, "sym8"))
    export(graph)
    with pytest.raises(ExportError, match=r"breaks \d+ rule\(s\) of target 'luci':\n.*E_LUCI_WEIGHT_DTYPE"):
        export(graph, target="luci")


@pytest.mark.parametrize(("path", "site"), [("", ":weight"), ("module.layers.3.fc", "layers.3.fc:weight")])
def test_site_behind_a_scale(path: str, site: str) -> None:
    graph = nn.Module()
    graph.add_module("sites", nn.ModuleDict({"weight": Grid("sym8", -torch.ones(8, 2), torch.ones(8, 2), 1, 4)}))
    root: Any = graph
    for part in reversed(path.split(".") if path else []):
        outer = nn.Module()
        outer.add_module(part, root)
        root = outer
    weight_site = root.get_submodule(f"{path}.sites.weight" if path else "sites.weight")
    adapter = Graph(lambda m, x: m.a(F.linear(m.a(x), weight_site(m.w))), X, w=W, a=u8(), **dict(root.named_children()))
    with pytest.raises(ExportError, match=rf"^site '{site}' is quantized in groups of 4, .*\(node 'fake_q"):
        export(adapter)


def test_groups_name_the_site_first() -> None:
    group, rest = QuantSpec(INT4, True, PerGroup(1, 4)), QuantSpec(UINT8)
    q = pyquant.prepare(nn.Linear(8, 8), Policy((Rule("*", spec=rest), Rule("*:weight", spec=group))))
    pyquant.calibrate(q, [torch.randn(4, 8)], progress=False)
    pyquant.convert(q)
    with pytest.raises(ExportError, match=r"^site ':weight' is quantized in groups of 4, .*node 'fake_quantize"):
        export(q, ExportProfile({"x": TensorSpec((4, 8))}, ("y",)))


def test_threads_take_turns() -> None:
    graphs = [Graph(lambda m, x, k=k: m.a(m.a(x) * k), X, a=u8()) for k in (0.5, 2.0, 0.25, 4.0)]
    alone = [export(graph).to_bytes() for graph in graphs]
    with ThreadPoolExecutor(4) as pool:
        assert [program.to_bytes() for program in pool.map(export, graphs)] == alone
