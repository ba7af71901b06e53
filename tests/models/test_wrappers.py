# SPDX-License-Identifier: Apache-2.0
"""Every registered wrapper, by the call that its family's tiny model makes of it: float = the module that it wraps,
quantized near it, and its graph exported once and compared three ways.

Registering a wrapper is enough to be tested here: cases come from pyquant.smoke.cases. What is particular to a wrapper
(padding, biases, other layouts) is in the files of its family.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import circle, models, smoke
from pyquant.batch import call, tensors_in
from pyquant.errors import ProfileError
from pyquant.exporter import CircleProgram
from pyquant.exporter.profile import Alone, ExportProfile
from pyquant.metrics import sqnr_db
from pyquant.models.alone import alone
from pyquant.policy import literal
from pyquant.smoke.cases import Case
from pyquant.verify.tolerance import deep_faults, layer_faults, op_faults
from pyquant.wrap import Phase, QModule, Site, phase
from tests.judges import judged

torch.set_num_threads(1)

CASES = {case.name: case for case in smoke.cases()}
# Wrappers without a graph of their own, and what they say of it.
NO_GRAPH = {
    "gemma4/Gemma4AudioRelPositionalEncoding": "the relative positions are a constant",
    "gemma4/Gemma4TextRotaryEmbedding": "the rotary tables are inputs of the static graphs",
    "llama/LlamaRotaryEmbedding": "the rotary tables are inputs of the static graphs",
    "qwen3_vl/Qwen3VLTextRotaryEmbedding": "the rotary tables are inputs of the static graphs",
    "qwen3_vl/Qwen3VLVisionRotaryEmbedding": "rotary tables",
}
# Exporting them takes seconds; the tests of bundles compare the same graphs in w8a16 and w4a16.
IN_BUNDLES = (
    "gemma4/Gemma4TextModel",
    "llama/LlamaModel",
    "qwen3_vl/Qwen3VLModel",
    "qwen3_vl/Qwen3VLTextModel",
    "qwen3_vl/Qwen3VLVisionModel",
)
UNCHECKED = {
    "gemma4/Gemma4Model": 1,
    "gemma4/Gemma4MultimodalEmbedder": 2,
    "gemma4/Gemma4TextModel": 4,
    "gemma4/Gemma4TextScaledWordEmbedding": 1,
    "qwen3_vl/Qwen3VLModel": 1,
}  # operators at most, whose tensor has no value in the eager model
FILLED = "shared_kv_states"  # a mapping that transformers' own forward fills
LEAST = {"w8a8": 19.0, "w8a16": 29.0, "w4a16": 9.0}  # dB of the outputs; a single operator has more


def has_weights(case: Case) -> bool:
    """Whether 4-bit weights are another case than 8-bit ones."""
    return case.module is not None and any(isinstance(m, nn.Linear) for m in case.module.modules())


RUNS = [(name, "w8a8") for name in CASES]
RUNS += [(name, "w4a16" if has_weights(case) else "w8a16") for name, case in CASES.items() if name not in IN_BUNDLES]
every_case = pytest.mark.parametrize("name", CASES)
LARGE = ("gemma4/Gemma4Text", "gemma4/Gemma4Model", "gemma4/Gemma4For", "gemma4/Gemma4Audio")  # in a second recipe


def _run(name: str, recipe: str) -> Any:
    slow = name.startswith(LARGE) and recipe != "w8a8"
    return pytest.param(name, recipe, marks=pytest.mark.slow if slow else (), id=f"{name}-{recipe}")


every_run = pytest.mark.parametrize(("name", "recipe"), [_run(*run) for run in RUNS])


@dataclass(frozen=True)
class Exported:
    """The graph of a case: what it is called with, and the program of its file."""

    graph: Alone
    program: CircleProgram

    @property
    def inputs(self) -> list[Tensor]:
        return [self.graph.inputs[name] for name in self.program.adapter.input_specs]


def outputs(module: Any, case: Case) -> list[Tensor]:
    """The tensors that a call returns, without gradients."""
    with torch.no_grad():
        return list(tensors_in(call(module, case.call)))


@functools.cache
def quantized(name: str, recipe: str) -> QModule:
    """Converted; sites that the one call does not reach stay float."""
    case = CASES[name]
    assert case.module is not None
    q = pyquant.prepare(case.module, pyquant.Policy.preset(recipe))
    pyquant.calibrate(q, [case.call], progress=False)
    pyquant.convert(q, unused=[literal(site.path) for site in q.uncalibrated_sites()])
    return q


@functools.cache
def exported(name: str, recipe: str) -> Exported | str:
    """Once for all comparisons; the reason where there is no graph."""
    case, q = CASES[name], quantized(name, recipe)
    family = None if case.family is None else models.by_name(case.family)
    try:
        with torch.no_grad():
            graph = alone(q, case.arguments, case.batch, len(outputs(q, case)), family)
    except ProfileError as error:
        return str(error)
    return Exported(graph, pyquant.export(q, graph.profile))


def graph_of(name: str, recipe: str) -> Exported:
    found = exported(name, recipe)
    if isinstance(found, str):
        assert name in NO_GRAPH, found
        assert NO_GRAPH[name] in found
        pytest.skip(f"no graph of its own: {found}")
    assert name not in NO_GRAPH
    return found


@every_case
def test_the_model_of_its_family_calls_it(name: str) -> None:
    """A class that is registered and never called has no case: the tiny model of its family has to use it."""
    assert CASES[name].module is not None, CASES[name].reason


@every_case
def test_float_phases_are_the_wrapped_module_and_change_nothing(name: str) -> None:
    case = CASES[name]
    assert case.module is not None
    given = copy.deepcopy(case)
    weights = copy.deepcopy(case.module.state_dict())
    q = pyquant.prepare(case.module, pyquant.Policy.preset("w8a8"))
    expected = outputs(case.module, case)
    assert expected
    for where in (Phase.CALIBRATE, Phase.FLOAT):
        with phase(q, where):
            got = outputs(q, case)
        for actual, wanted in zip(got, expected, strict=False):  # a wrapper may return more: attention weights
            assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
            largest = float(wanted.double().abs().max())
            assert float((actual.double() - wanted.double()).abs().max()) <= 1e-5 * largest
        assert len(got) >= len(expected)
    arguments = (
        tensors_in([value for key, value in each.arguments.items() if key != FILLED]) for each in (given, case)
    )
    for before, after in zip(*arguments, strict=True):
        assert torch.equal(before, after), "the wrapper changes its arguments"
    assert all(torch.equal(value, weights[key]) for key, value in case.module.state_dict().items())


@every_run
def test_quantized_is_finite_and_near(name: str, recipe: str) -> None:
    case = CASES[name]
    pairs = list(zip(outputs(case.module, case), outputs(quantized(name, recipe), case), strict=False))
    assert pairs
    for expected, got in pairs:
        assert expected.shape == got.shape
        assert bool(torch.isfinite(got).all())
        if expected.is_floating_point():
            assert sqnr_db(expected, got) > LEAST[recipe]


@every_run
def test_exported_program_is_eager_bit_for_bit(name: str, recipe: str) -> None:
    found = graph_of(name, recipe)
    with torch.no_grad():
        eager, traced = found.program.adapter(*found.inputs), found.program.exported.module()(*found.inputs)
    eager, traced = list(tensors_in(eager)), list(tensors_in(traced))
    assert len(eager) == len(found.program.outputs)
    assert all(map(torch.equal, traced, eager))
    if isinstance(found.graph.profile, ExportProfile):  # the graph is the whole call: each site that saw data, once
        buffers = found.program.exported.graph_signature.inputs_to_buffers
        fakes = [n for n in found.program.exported.graph.nodes if str(n.target) == "pyquant.fake_quantize.default"]
        nodes = [buffers[n.args[1].name].removeprefix("module.").removesuffix(".scale") for n in fakes]
        named = quantized(name, recipe).named_modules()
        assert sorted(nodes) == sorted(key for key, site in named if isinstance(site, Site) and site.qparams)


@every_run
def test_every_tensor_has_a_grid(name: str, recipe: str) -> None:
    found, q = graph_of(name, recipe), quantized(name, recipe)
    assert circle.check(found.program.to_bytes()) == []
    scales = [scale for tensor in found.program.graph.tensors if tensor.quant for scale in tensor.quant.scale]
    assert all(0 < scale < float("inf") for scale in scales)
    sites = list(q.all_sites())
    assert found.program.missing_qparams() == [] or not sites, "only what moves values and has no site is float"
    assert bool(scales) == bool(sites)


@every_run
def test_the_file_computes_what_eager_computes(name: str, recipe: str) -> None:
    """In TICO's runtime: operator by operator; end to end as a single layer, or, where that is deeper, as a model."""
    found, q = graph_of(name, recipe), quantized(name, recipe)
    report = judged(found.program, None, found.inputs)
    assert op_faults(report) == []
    assert report.unchecked <= UNCHECKED.get(name, 0)
    if layer_faults(report) == []:
        return
    linears = sum(isinstance(m, nn.Linear) for m in CASES[name].module.modules())  # type: ignore[union-attr]
    assert linears > (2 if recipe == "w8a8" else 0), layer_faults(report)  # one rounding flip reaches the next operator
    with phase(q, Phase.FLOAT), torch.no_grad():
        floats = tensors_in(found.program.adapter(*found.inputs))
    reference = dict(zip((out.name for out in found.program.outputs), floats, strict=True))
    assert deep_faults(found.program, None, found.inputs, reference, report) == []
