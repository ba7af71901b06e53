# SPDX-License-Identifier: Apache-2.0
"""Models in bfloat16 and float16: the warning of export, the contents of the file, and the float32 alternative."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporter_cases import Graph
from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4 as hf
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

import pyquant
import pyquant.models.gemma4
from pyquant.errors import InputError
from pyquant.exporter import ExportProfile, LowPrecisionWarning, TensorSpec, export
from pyquant.verify import compare

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
X = (2, 3, 32)
NARROW: dict[str, Callable[..., Any]] = {
    "clamp": lambda m, x: x.clamp(-0.5, 0.7),
    "scalars": lambda m, x: 2.0 - (x + 1.5) * 0.3 / 4.0,
    "reciprocal": lambda m, x: torch.reciprocal(x),
    "power": lambda m, x: x**3,
    "where": lambda m, x: torch.where(x > 0.25, x, -1.0),
    "layer_norm": lambda m, x: F.layer_norm(x, (32,)),
    "rms_norm": lambda m, x: F.rms_norm(x, (32,)),
    "float32 bound": lambda m, x: torch.maximum(x, m.low.to(x.dtype)) + m.low,
}


@DTYPES
@pytest.mark.parametrize("name", NARROW)
def test_numbers_take_the_type_of_the_tensor_beside_them(name: str, dtype: torch.dtype) -> None:
    dtype_text = str(dtype).removeprefix("torch.")
    graph = Graph(NARROW[name], TensorSpec(X, dtype), low=torch.tensor(-0.5))
    with pytest.warns(
        LowPrecisionWarning, match=rf"'case' has {dtype_text} tensors, .*cast to float32 first: q32 = copy"
    ):
        program = export(graph)
    assert program.check() == []
    assert {t.dtype for t in program.graph.tensors} <= {dtype_text, "bool", "int32"}
    program.to_bytes()
    with pytest.raises(InputError, match=rf"has {dtype_text} tensors, and .*cast to float32 first: q32 = copy"):
        compare(program, graph, [torch.zeros(X, dtype=dtype)])


def config() -> Gemma4VisionConfig:
    made = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pooling_kernel_size=2,
        patch_size=2,
        position_embedding_size=8,
        use_clipped_linears=False,
    )
    made._attn_implementation = "eager"
    return made


def converted(fp: nn.Module, batch: dict[str, Tensor]) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    with torch.no_grad():
        pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return q


@DTYPES
def test_a_low_model_warns_and_its_float32_copy_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fp = hf.Gemma4VisionMLP(config()).eval().to(dtype)
    weights = {name: value.clone() for name, value in fp.state_dict().items()}
    x = torch.randn(X).to(dtype)
    q = converted(fp, {"x": x})
    dtype_text = str(dtype).removeprefix("torch.")
    with pytest.warns(
        LowPrecisionWarning, match=rf"in {dtype_text}, the file in float32 and integers.*deepcopy\(q\).float"
    ):
        program = export(q, ExportProfile({"x": TensorSpec(X, dtype)}, ("y",)))
    coarse = compare(program, q, [x])
    assert coarse.dtype == dtype_text
    assert f"eager computes in {dtype_text}, the file in float32" in str(coarse)
    assert " unchecked" in str(coarse).splitlines()[0]

    q32 = copy.deepcopy(q).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = export(q32, ExportProfile({"x": TensorSpec(X)}, ("y",)))
    report = compare(exact, q32, [x.float()])
    assert report.exported_equal
    assert report.max_lsb <= 1 < coarse.max_lsb
    assert report.dtype == "float32"
    assert "eager computes" not in str(report)
    assert exact.to_bytes() == program.to_bytes()
    assert all(value.dtype is dtype and torch.equal(value, weights[name]) for name, value in fp.state_dict().items())


def test_the_float32_copy_of_a_bf16_tower_differs_in_computed_tables_only() -> None:
    torch.manual_seed(0)
    fp = hf.Gemma4VisionModel(config()).eval().to(torch.bfloat16)
    ids = torch.tensor([[[i % 4, i // 4] for i in range(16)]])
    batch = {"pixel_values": torch.rand(1, 16, 12), "pixel_position_ids": ids}
    q, profile = converted(fp, batch), pyquant.models.gemma4.VisionProfile(grid=(4, 4))
    with pytest.warns(LowPrecisionWarning, match="tables that the adapter computes are then float32 too"):
        program = export(q, profile)
    q32 = copy.deepcopy(q).float()
    exact = export(q32, profile)
    report = compare(exact, q32, batch)
    assert report.exported_equal
    assert report.max_lsb <= 1
    assert exact.graph.to_json() == program.graph.to_json()
    changed = {
        tensor.name.split(".")[0]
        for tensor in exact.graph.tensors
        if tensor.constant is not None
        and not torch.equal(*(p.graph.constants[tensor.constant].tensor() for p in (exact, program)))
    }
    assert changed <= {"tables"}


def test_a_bundle_warns_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = converted(hf.Gemma4VisionMLP(config()).eval().to(torch.bfloat16), {"x": torch.randn(X).to(torch.bfloat16)})
    profiles = {f"rows{n}": ExportProfile({"x": TensorSpec((n, 3, 32), torch.bfloat16)}, ("y",)) for n in range(1, 6)}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pyquant.export_bundle(q, tmp_path / "out", profiles)
    (only,) = [each for each in seen if issubclass(each.category, LowPrecisionWarning)]
    assert "eager computes 'rows1', 'rows2', 'rows3' and 2 more in bfloat16" in str(only.message)
    assert only.filename == __file__
