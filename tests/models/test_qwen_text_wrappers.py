# SPDX-License-Identifier: Apache-2.0
"""What holds for every Qwen3-VL text wrapper of the table: float phase, quantized quality, purity, static export.

The cases are qwen_text_tiny.py.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter

import pytest
import torch
from qwen_text_tiny import (
    BATCHES,
    CASES,
    EAGER,
    PLAIN,
    STATIC,
    Batch,
    close,
    converted,
    graph_inputs,
    profile_of,
)
from torch import Tensor, nn

import pyquant
from pyquant import ExportProfile
from pyquant.exporter.profile import TensorSpec
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, QModule, Site, phase

EVERY = [(name, batch) for name in CASES for batch in BATCHES]
every_batch = pytest.mark.parametrize(("name", "batch"), EVERY, ids=[f"{n}-{b}" for n, b in EVERY])
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def quantized(name: str, preset: str = "w8a16") -> tuple[nn.Module, QModule]:
    fp = CASES[name].build()
    batches = [CASES[name].inputs(fp, BATCHES[batch]) for batch in ("one", "two", "left")]
    return fp, converted(fp, batches, preset, CASES[name].unused)


def real_rows(batch: Batch, out: Tensor) -> Tensor:
    """Valid tokens: what stands at padding means nothing (and transformers computes something else there)."""
    return out[batch.valid] if tuple(out.shape[:2]) == batch.shape else out


def frozen(value):
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(map(same, a, b)) if isinstance(a, tuple | list) else a == b


@every_batch
def test_float_phase_is_transformers(name, batch):
    fp = CASES[name].build()
    given = CASES[name].inputs(fp, BATCHES[batch])
    before = {key: frozen(value) for key, value in given.items()}
    weights = copy.deepcopy(fp.state_dict())
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))

    def pick(out):
        return real_rows(BATCHES[batch], CASES[name].pick(out))

    with torch.no_grad():
        expected = pick(fp(**given))
        close(pick(q(**given)), expected)  # calibrating
        with phase(q, Phase.FLOAT):
            close(pick(q(**given)), expected)
        assert torch.equal(pick(fp(**given)), expected)
    assert all(same(given[key], before[key]) for key in given)
    assert all(torch.equal(value, weights[key]) for key, value in fp.state_dict().items())


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-2), (torch.float16, 2e-2)], ids=["bf16", "fp16"])
def test_low_precision_models_run_in_every_phase(name, dtype, tolerance):
    def cast(value):
        if isinstance(value, tuple | list):
            return type(value)(map(cast, value))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.clamp(min=torch.finfo(dtype).min).to(dtype)

    fp, batch = CASES[name].build().to(dtype), BATCHES["left"]
    given = {key: cast(value) for key, value in CASES[name].inputs(fp, batch).items()}
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pick = CASES[name].pick
    with torch.no_grad():
        expected, observed = pick(fp(**given)), pick(q(**given))
        close(real_rows(batch, observed), real_rows(batch, expected), tolerance)
        with phase(q, Phase.FLOAT):
            close(real_rows(batch, pick(q(**given))), real_rows(batch, expected), tolerance)
        pyquant.convert(q, unused=CASES[name].unused)
        out = pick(q(**given))
    assert out.dtype == expected.dtype == dtype
    close(real_rows(batch, out), real_rows(batch, expected), 0.15)


@every_batch
def test_quantized_is_close_on_padded_and_unpadded_batches(name, batch):
    fp, q = quantized(name)
    given = CASES[name].inputs(fp, BATCHES[batch])
    with torch.no_grad():
        expected, out = (real_rows(BATCHES[batch], CASES[name].pick(m(**given))) for m in (fp, q))
    assert bool(torch.isfinite(out).all())
    assert sqnr_db(expected, out) > (18 if batch == "right" else 28)  # not in the calibration: a few values saturate


def nodes_per_site(program: torch.export.ExportedProgram) -> Counter[str]:
    buffers = program.graph_signature.inputs_to_buffers
    nodes = [n for n in program.graph.nodes if str(n.target) == "pyquant.fake_quantize.default"]
    return Counter(buffers[n.args[1].name].removeprefix("module.").removesuffix(".scale") for n in nodes)


def site_names(q: QModule) -> set[str]:
    return {name for name, module in q.named_modules() if isinstance(module, Site)}


def adapter_and_inputs(name: str, batch: Batch, fp: nn.Module, q: QModule) -> tuple[nn.Module, list[Tensor]]:
    case = CASES[name]
    given = case.inputs(fp, batch)
    if name in STATIC:
        tensors = graph_inputs(given, batch)
        adapter = q.as_export_module(profile_of(name, batch))
        assert list(adapter.input_specs) == list(tensors)
        assert {key: tuple(t.shape) for key, t in tensors.items()} == {
            key: spec.shape for key, spec in adapter.input_specs.items()
        }
        return adapter, list(tensors.values())
    x = given[case.first]
    return q.as_export_module(ExportProfile({case.first: TensorSpec(tuple(x.shape), x.dtype)}, ("y",))), [x]


# Exporting takes seconds: a padded batch for all, an unpadded one for a few.
EXPORTS = [(name, "left") for name in STATIC] + [("attention", "two"), ("decoder_layer", "one")]


@pytest.mark.parametrize(("name", "batch"), EXPORTS, ids=[f"{n}-{b}" for n, b in EXPORTS])
def test_exported_program_is_eager_with_each_site_once(name, batch):
    """Bit for bit: inputs that a host makes against HF's own, and torch.export against both. No node without a site."""
    fp, q = quantized(name, "w8a8")
    given = CASES[name].inputs(fp, BATCHES[batch])
    adapter, tensors = adapter_and_inputs(name, BATCHES[batch], fp, q)
    with torch.no_grad():
        eager = CASES[name].pick(q(**given))
        static = adapter(*tensors)
        program = torch.export.export(adapter, tuple(tensors), strict=False)
        exported = program.module()(*tensors)
    static, exported = (out if isinstance(out, tuple) else (out,) for out in (static, exported))
    assert all(map(torch.equal, exported, static))
    final = q.norm(static[0]) if name.startswith("model") else static[0]  # the graph ends before the final norm
    assert torch.equal(final, eager)
    nodes = nodes_per_site(program)
    assert set(nodes.values()) == {1}
    outside = tuple(f"{part}." for part in ("embed_tokens", "norm"))
    assert set(nodes) == {site for site in site_names(q) if not (name.startswith("model") and site.startswith(outside))}
    assert not any("sym" in str(node.target) for node in program.graph.nodes)


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


@pytest.mark.parametrize("preset", ["w8a8", "w8a16", "w4a16"])
@pytest.mark.parametrize("name", ["attention_biases", "decoder_layer", "model_plain"])
def test_circle_graph_is_fully_quantized(name, preset):
    """Coverage: export itself raises for a float tensor, since every site of the policy has a format."""
    fp, q = quantized(name, preset)
    adapter, _ = adapter_and_inputs(name, BATCHES["two"], fp, q)
    program = pyquant.export(adapter)
    targets = {str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"}
    assert not {t for t in targets if t.startswith(FORBIDDEN)}
    assert [t.name for t in program.graph.tensors if t.is_float] == []
    scales = [scale for t in program.graph.tensors if t.quant is not None for scale in t.quant.scale]
    assert all(0 < scale < float("inf") for scale in scales)
    # Producers and consumers saw the same data: no grid changes on the way.
    assert Counter(op.op for op in program.graph.operators)["QUANTIZE"] == 0


def test_the_table_has_every_text_class_of_transformers():
    from transformers.models.qwen3_vl import modeling_qwen3_vl as hf

    ours = {type(case.build()).__name__ for case in CASES.values()}
    theirs = {
        name
        for name, cls in vars(hf).items()
        if name.startswith("Qwen3VLText") and isinstance(cls, type) and issubclass(cls, nn.Module)
    }
    assert ours == theirs
    assert set(EAGER) | set(STATIC) | set(PLAIN) == set(CASES)
