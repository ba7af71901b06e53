# SPDX-License-Identifier: Apache-2.0
"""What holds for every Qwen3-VL vision wrapper of the table: float phase, low precision, quantized quality, export.

The cases are qwen_vision_tiny.py; what the written files compute is test_qwen_vision_circle.py.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from qwen_vision_tiny import BATCHES, CASES, STATIC, hf, profile_of, runs
from torch import Tensor, nn

import pyquant
from pyquant import ExportProfile
from pyquant.exporter.profile import TensorSpec
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, QModule, Site, phase
from pyquant.wrap.registry import wrapper_of

EVERY = [(name, batch) for name in CASES for batch in BATCHES]
# Exporting takes a second or so: neighbours of one length and of several for a few, one batch for the others.
EXPORTS = [
    *[(name, batch) for name in ("attention", "block") for batch in ("video", "mixed")],
    ("model_taps", "mixed"),
    ("model_large_table", "video"),
    ("model_merge_1", "images"),
    ("model_no_taps_silu", "image"),
    *[(name, "image") for name in CASES if name not in STATIC],
]


def ids(pairs: list[tuple[str, ...]]) -> list[str]:
    return ["-".join(pair) for pair in pairs]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    worst = float((actual.double() - expected.double()).abs().max()) / float(expected.double().abs().max())
    assert worst <= tolerance, f"off by {worst:.2e} of the largest value"


def all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        close(mine, theirs, tolerance)


@functools.cache
def quantized(name: str, preset: str) -> tuple[nn.Module, QModule]:
    """Calibrated on one batch of the table and on one of a grid that is in none."""
    fp = CASES[name].build()
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    batches = [CASES[name].inputs(fp, grids) for grids in (BATCHES["mixed"], ((1, 8, 8),))]
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return fp, q


def adapter_of(name: str, batch: str, q: QModule, x: Tensor) -> nn.Module:
    if name in STATIC:
        return q.as_export_module(profile_of(BATCHES[batch]))
    return q.as_export_module(ExportProfile({"x": TensorSpec(tuple(x.shape), x.dtype)}, ("y",)))


@functools.cache
def exported(name: str, batch: str, preset: str) -> Any:
    fp, q = quantized(name, preset)
    return pyquant.export(adapter_of(name, batch, q, CASES[name].inputs(fp, BATCHES[batch])[CASES[name].first]))


def frozen(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def same(a: Any, b: Any) -> bool:
    return all(map(same, a, b)) if isinstance(a, tuple) else torch.equal(a, b)


def test_every_vision_module_of_transformers_has_a_wrapper() -> None:
    classes = [
        cls
        for name, cls in vars(hf).items()
        if name.startswith("Qwen3VLVision") and isinstance(cls, type) and issubclass(cls, nn.Module)
    ]
    assert len(classes) == 7
    assert {wrapper_of(cls).__name__ for cls in classes} == {f"Quant{cls.__name__}" for cls in classes}


@pytest.mark.parametrize(("name", "batch"), EVERY, ids=ids(EVERY))
def test_float_phase_is_transformers_and_changes_nothing(name: str, batch: str) -> None:
    fp = CASES[name].build()
    given = CASES[name].inputs(fp, BATCHES[batch])
    before = {key: frozen(value) for key, value in given.items()}
    weights = copy.deepcopy(fp.state_dict())
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pick = CASES[name].pick
    with torch.no_grad():
        expected = pick(fp(**given))
        all_close(pick(q(**given)), expected)  # calibrating
        with phase(q, Phase.FLOAT):
            all_close(pick(q(**given)), expected)
        assert all(map(torch.equal, pick(fp(**given)), expected))
    assert all(same(given[key], before[key]) for key in given)
    assert all(torch.equal(value, weights[key]) for key, value in fp.state_dict().items())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-2), (torch.float16, 1e-2)], ids=["bf16", "fp16"])
def test_low_precision_models_run_in_every_phase(name: str, dtype: torch.dtype, tolerance: float) -> None:
    fp = CASES[name].build().to(dtype)
    given = CASES[name].inputs(fp, BATCHES["mixed"])
    if "grid_thw" not in given:
        given[CASES[name].first] = given[CASES[name].first].to(dtype)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pick = CASES[name].pick
    with torch.no_grad():
        expected = pick(fp(**given))
        all_close(pick(q(**given)), expected, tolerance)
        pyquant.convert(q)
        all_close(pick(q(**given)), expected, 0.1)
        with phase(q, Phase.FLOAT):
            all_close(pick(q(**given)), expected, tolerance)


@pytest.mark.parametrize(("name", "batch"), EVERY, ids=ids(EVERY))
def test_quantized_is_close_and_stays_so_on_other_grids(name: str, batch: str) -> None:
    fp, q = quantized(name, "w8a16")
    given, pick = CASES[name].inputs(fp, BATCHES[batch]), CASES[name].pick
    with torch.no_grad():
        for expected, out in zip(pick(fp(**given)), pick(q(**given)), strict=True):
            assert sqnr_db(expected, out) > (36 if batch == "mixed" else 29)  # values of the others may saturate


def nodes_per_site(program: torch.export.ExportedProgram) -> Counter[str]:
    buffers = program.graph_signature.inputs_to_buffers
    nodes = [n for n in program.graph.nodes if str(n.target) == "pyquant.fake_quantize.default"]
    return Counter(buffers[n.args[1].name].removeprefix("module.").removesuffix(".scale") for n in nodes)  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "batch"), EXPORTS, ids=ids(EXPORTS))
def test_exported_program_is_eager_with_each_site_once(name: str, batch: str) -> None:
    """Bit for bit: static tables against grids, and torch.export against both. No node without a site.

    Attention runs once for each length of segments in a row, and so do its sites.
    """
    fp, q = quantized(name, "w8a8")
    case = CASES[name]
    given = case.inputs(fp, BATCHES[batch])
    x = given[case.first]
    program = exported(name, batch, "w8a8")
    with torch.no_grad():
        eager, static = case.pick(q(**given)), program.adapter(x)
        traced = program.exported.module()(x)
    static, traced = ([out] if isinstance(out, Tensor) else list(out) for out in (static, traced))
    assert len(eager) == len(static) == len(traced)
    assert all(map(torch.equal, static, eager))
    assert all(map(torch.equal, traced, static))
    nodes = nodes_per_site(program.exported)
    sites = {path for path, module in q.named_modules() if isinstance(module, Site)}
    assert set(nodes) == {site for site in sites if not site.endswith((".mask", ".masked_logits"))}
    repeated = {site: count for site, count in nodes.items() if "core." in site}
    assert set(repeated.values()) <= {runs(BATCHES[batch])}
    assert {count for site, count in nodes.items() if site not in repeated} == {1}
    assert [spec.shape for spec in program.adapter.input_specs.values()] == [tuple(x.shape)]


FORBIDDEN = (
    "aten.to.",
    "aten._to_copy",
    "aten.where",
    "aten.neg",
    "aten.index",
    "aten.embedding",
    "aten.lerp",
    "aten.convolution",
    "aten.conv3d",
    "sym_",
)


@pytest.mark.parametrize(("name", "batch"), EXPORTS, ids=ids(EXPORTS))
def test_circle_graph_is_fully_quantized(name: str, batch: str) -> None:
    program = exported(name, batch, "w8a8")
    targets = {str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"}
    assert not {target for target in targets if target.startswith(FORBIDDEN)}
    operators = Counter(op.op for op in program.graph.operators)
    assert operators["QUANTIZE"] == 0  # producers and consumers saw the same data: no grid changes on the way
    floats = [tensor.name for tensor in program.graph.tensors if tensor.is_float]
    assert floats == []
    scales = [scale for tensor in program.graph.tensors if tensor.quant for scale in tensor.quant.scale]
    assert all(0 < scale < float("inf") for scale in scales)


WRONG: dict[str, Callable[[QModule], Any]] = {
    "model": lambda q: q,
    "block": lambda q: q.blocks[0],
    "attention": lambda q: q.blocks[0].attn,
}


@pytest.mark.parametrize("part", WRONG)
def test_export_before_convert_is_refused(part: str) -> None:
    q = WRONG[part](pyquant.prepare(CASES["model_taps"].build(), pyquant.Policy.preset("w8a8")))
    with pytest.raises(pyquant.PyquantError, match=r"export before the tree is ready.*run pyquant\.calibrate"):
        q.as_export_module(profile_of(BATCHES["image"]))


@pytest.mark.parametrize("part", WRONG)
def test_another_kind_of_profile_is_refused(part: str) -> None:
    other = ExportProfile({"pixel_values": TensorSpec((16, 96))}, ("y",))
    with pytest.raises(pyquant.PyquantError, match=r"qwen3_vl\.VisionProfile\(.*got ExportProfile"):
        WRONG[part](quantized("model_taps", "w8a8")[1]).as_export_module(other)
