# SPDX-License-Identifier: Apache-2.0
"""What holds for every Gemma4 vision wrapper of the table: float phase, quantized quality, static export.

The cases are gemma4_tiny.py.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter

import pytest
import torch
from gemma4_tiny import BATCHES, CASES, EXPORTS, STATIC, grids_for, positions, profile_of
from torch import Tensor

import pyquant
from pyquant import ExportProfile
from pyquant.exporter.profile import TensorSpec
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, QModule, Site, phase

every_batch = pytest.mark.parametrize(("name", "batch"), BATCHES, ids=[f"{n}-{b}" for n, b in BATCHES])
every_case = pytest.mark.parametrize("name", CASES)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    worst = float((actual.double() - expected.double()).abs().max()) / float(expected.double().abs().max())
    assert worst <= tolerance, f"off by {worst:.2e} of the largest value"


def inputs_of(name: str, batch: str, fp: torch.nn.Module) -> dict:
    grids, patches = grids_for(name)[batch]
    return CASES[name].inputs(fp, positions(*grids, patches=patches))


@functools.cache
def quantized(name: str, preset: str = "w8a16") -> tuple[torch.nn.Module, QModule]:
    """Calibrated on unpadded data only."""
    fp = CASES[name].build()
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, [inputs_of(name, batch, fp) for batch in ("one", "two")], progress=False)
    pyquant.convert(q)
    return fp, q


def real_rows(name: str, batch: str, out: Tensor) -> Tensor:
    """Hidden states of real patches: those of padding patches are stripped in the end, and mean nothing."""
    grids, patches = grids_for(name)[batch]
    if out.dim() == 3 and out.shape[1] == patches:
        return out[(positions(*grids, patches=patches) != -1).all(-1)]
    return out


def frozen(value):
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(map(same, a, b)) if isinstance(a, tuple) else a == b


@every_batch
def test_float_phase_is_transformers(name, batch):
    fp = CASES[name].build()
    given = inputs_of(name, batch, fp)
    before = {key: frozen(value) for key, value in given.items()}
    weights = copy.deepcopy(fp.state_dict())
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pick = CASES[name].pick
    with torch.no_grad():
        expected = pick(fp(**given))
        close(pick(q(**given)), expected)  # calibrating
        with phase(q, Phase.FLOAT):
            close(pick(q(**given)), expected)
        assert torch.equal(pick(fp(**given)), expected)
    assert all(same(given[key], before[key]) for key in given)
    assert all(torch.equal(value, weights[key]) for key, value in fp.state_dict().items())


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-2), (torch.float16, 1e-2)], ids=["bf16", "fp16"])
def test_low_precision_models_run_in_every_phase(name, dtype, tolerance):
    def cast(value):
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    fp = CASES[name].build().to(dtype)
    given = {k: v if k == "pixel_values" else cast(v) for k, v in inputs_of(name, "padded", fp).items()}
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pick = CASES[name].pick
    with torch.no_grad():
        expected, observed = pick(fp(**given)), pick(q(**given))
        if name == "pooler":  # transformers before 5.10 returns it in the model's type
            expected = expected.float()
        close(real_rows(name, "padded", observed), real_rows(name, "padded", expected), tolerance)
        pyquant.convert(q)
        out = pick(q(**given))
    assert out.dtype == expected.dtype
    close(real_rows(name, "padded", out), real_rows(name, "padded", expected), 0.1)


@every_batch
def test_quantized_is_close_on_padded_and_unpadded_batches(name, batch):
    fp, q = quantized(name)
    given, pick = inputs_of(name, batch, fp), CASES[name].pick
    with torch.no_grad():
        expected, out = (real_rows(name, batch, pick(m(**given))) for m in (fp, q))
    assert bool(torch.isfinite(out).all())
    # Padded images are not those of the calibration, so a few values saturate there.
    assert sqnr_db(expected, out) > (18 if batch.startswith("padded") else 30)


def nodes_per_site(program: torch.export.ExportedProgram) -> Counter[str]:
    buffers = program.graph_signature.inputs_to_buffers
    nodes = [n for n in program.graph.nodes if str(n.target) == "pyquant.fake_quantize.default"]
    return Counter(buffers[n.args[1].name].removeprefix("module.").removesuffix(".scale") for n in nodes)


def site_names(q: QModule) -> set[str]:
    return {name for name, module in q.named_modules() if isinstance(module, Site)}


def adapter_of(name: str, batch: str, q: QModule, given: dict) -> torch.nn.Module:
    case = CASES[name]
    if name in STATIC:
        return q.as_export_module(profile_of(case, *grids_for(name)[batch]))
    x = given[case.first]
    return q.as_export_module(ExportProfile({case.first: TensorSpec(tuple(x.shape), x.dtype)}, ("y",)))


@pytest.mark.parametrize(("name", "batch"), EXPORTS, ids=[f"{n}-{b}" for n, b in EXPORTS])
def test_exported_program_is_eager_with_each_site_once(name, batch):
    """Bit for bit: static tables against positions, and torch.export against both. No node without a site."""
    fp, q = quantized(name, "w8a8")
    given, case = inputs_of(name, batch, fp), CASES[name]
    adapter, x = adapter_of(name, batch, q, given), given[case.first]
    with torch.no_grad():
        program = torch.export.export(adapter, (x,), strict=False)
        eager, static, exported = case.pick(q(**given)), adapter(x), program.module()(x)
    if name == "pooler":  # the graph has no rows for pools that are all padding
        eager = eager[:, : static.shape[1]]
    assert torch.equal(static, eager)
    assert torch.equal(exported, static)
    nodes = nodes_per_site(program)
    assert set(nodes.values()) == {1}
    unused = {site for site in site_names(q) if site.endswith((".mask", ".masked_logits"))}
    assert set(nodes) == site_names(q) - (set() if batch.startswith("padded") else unused)
    assert list(adapter.input_specs) == [case.first]
    assert adapter.input_specs[case.first].shape == tuple(x.shape)


FORBIDDEN = (
    "aten.to.",
    "aten._to_copy",
    "aten.where",
    "aten.neg",
    "aten.clamp",
    "aten.index",
    "aten.embedding",
    "sym_",
)


FORMATS = [(name, "w8a8") for name in CASES] + [(name, "w4a16") for name in CASES if "clipped" in name]


@pytest.mark.parametrize(("name", "preset"), FORMATS, ids=[f"{n}-{p}" for n, p in FORMATS])
def test_circle_graph_is_fully_quantized(name, preset):
    fp, q = quantized(name, preset)
    batch = "padded"
    program = pyquant.export(adapter_of(name, batch, q, inputs_of(name, batch, fp)))
    targets = {str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"}
    clipped = {"aten.clamp.default"} if "clipped" in name and preset != "w8a8" else set()
    assert not {t for t in targets - clipped if t.startswith(FORBIDDEN)}
    operators = Counter(op.op for op in program.graph.operators)
    if "clipped" not in name:  # producers and consumers saw the same data: no grid changes on the way
        assert operators["QUANTIZE"] == 0
