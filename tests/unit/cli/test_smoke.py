# SPDX-License-Identifier: Apache-2.0
"""`pyquant smoke`: every registered class has a case, each is ok or has a reason for no graph, a broken one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyquant import circle, models, smoke
from pyquant.cli.main import main
from pyquant.models.gemma4 import QuantGemma4RMSNorm
from pyquant.smoke.cases import has_case
from pyquant.verify.runtimes import tico
from pyquant.wrap import registry

torch.set_num_threads(1)

NO_GRAPH = {
    "gemma4/Gemma4AudioRelPositionalEncoding": "the relative positions are a constant",
    "gemma4/Gemma4TextRotaryEmbedding": "rotary tables",
    "llama/LlamaRotaryEmbedding": "rotary tables",
    "qwen3_vl/Qwen3VLTextRotaryEmbedding": "rotary tables",
    "qwen3_vl/Qwen3VLVisionRotaryEmbedding": "rotary tables",
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> tuple[list[dict], Path]:
    """One family, the leaves and what has no graph, once; tests/models/test_wrappers.py compares every case."""
    folder = tmp_path_factory.mktemp("smoke")
    found = [case for case in smoke.cases() if case.family in ("gemma4", None) or case.name in NO_GRAPH]
    return [smoke.run(case, folder=folder).to_dict() for case in found], folder


def test_every_registered_class_has_a_case():
    names = {case.cls for case in smoke.cases()}
    ours = set(filter(has_case, registry.classes()))
    assert names == ours
    assert {"gemma4", "qwen3_vl"} <= set(models.FAMILIES)
    for family in models.FAMILIES:
        called = {type(module) for module in models.by_name(family).example.tiny_model().modules()}
        assert called & ours <= names


def test_every_case_is_ok_or_says_why_it_has_no_graph(everything):
    results, folder = everything
    assert [r["case"] for r in results if r["status"] == smoke.FAILED] == []
    assert {r["case"] for r in results if r["status"] == smoke.NO_GRAPH} == set(NO_GRAPH)
    for result in results:
        assert result["shapes_match"], result
        assert result["finite"], result
        if result["status"] == smoke.NO_GRAPH:
            assert NO_GRAPH[result["case"]] in result["reasons"][0]
            continue
        assert result["op_lsb"] <= 1, result
        assert circle.check(result["artifact"]) == []
        assert Path(result["artifact"]).parent == folder
        assert Path(result["artifact"]).stat().st_size == result["bytes"]
        moves_only = result["sqnr"] == "inf"
        assert result["missing"] == 0 or moves_only, result
        assert moves_only or 20 < result["sqnr"] < 60, result


def test_the_file_of_a_case_computes_what_its_line_says(everything):
    """The whole vision tower: its file, run by us, against transformers on the tiny model's own inputs."""
    results, _ = everything
    result = next(r for r in results if r["case"] == "gemma4/Gemma4VisionModel")
    made = models.by_name("gemma4").example
    model = made.tiny_model()
    batch = made.example_inputs(model)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    got = next(iter(tico.run(result["artifact"], {"pixel_values": batch["pixel_values"]}).values()))
    peak = float((expected.reshape(got.shape) - got).abs().max())
    assert peak == pytest.approx(result["max_abs"], rel=1e-3)


def test_lines_paragraphs_and_json(capsys, tmp_path):
    assert main(["smoke", "--case", "nn/ReLU", "--case", "hf/*Tanh", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["case", "status", "mean|d|"]
    assert [line.split()[:2] for line in lines[1:3]] == [["hf/GELUTanh", "ok"], ["nn/ReLU", "ok"]]
    assert lines[3] == "2 cases, w8a8: 2 ok, 0 without a graph of their own, 0 failed"
    assert main(["smoke", "--case", "nn/ReLU", "--recipe", "w8a16", "--output-dir", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "nn/ReLU (w8a16): ok" in text
    assert "0 tensors without qparams" in text
    assert (tmp_path / "out" / "nn_ReLU.circle").is_file()
    assert main(["smoke", "--case", "nn/ReLU", "--json", "--export", "none"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["format"] == "pyquant-smoke-1"
    assert data["results"][0]["op_lsb"] is None
    assert main(["smoke", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(smoke.cases())


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, hidden_states: hidden_states * torch.nan, "NaN"),
        (lambda self, hidden_states: hidden_states[:, :1], "shapes"),
        (lambda self, hidden_states: hidden_states * 2.0, "declare in the policy that it stays float"),
        (lambda self, hidden_states: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["nan", "shape", "no site", "raises"],
)
def test_a_broken_wrapper_fails_and_says_why(monkeypatch, capsys, forward, reason):
    case = "gemma4/Gemma4RMSNorm" if reason != "NaN" else "gemma4/Gemma4VisionEncoderLayer"
    monkeypatch.setattr(QuantGemma4RMSNorm, "forward", forward)
    assert main(["smoke", "--case", case, "--all"]) == 1
    out = capsys.readouterr().out
    assert f"{case}  FAILED" in out
    assert reason in out
    assert "1 failed" in out


def test_thresholds_and_mistakes(capsys):
    assert main(["smoke", "--case", "nn/Tanh", "--export", "none", "--fail-above", "SQNR=90"]) == 1
    assert "nn/Tanh: SQNR" in capsys.readouterr().err
    assert main(["smoke", "--case", "nn/Nothing"]) == 2
    assert "there is no such case; there are gemma4/" in capsys.readouterr().err


def test_a_class_that_no_model_calls_fails_by_name(monkeypatch):
    family = models.by_name("gemma4")
    for example in (family.example, *family.parts):
        monkeypatch.setattr(example, "tiny_model", lambda: torch.nn.Identity())
        monkeypatch.setattr(example, "example_inputs", lambda model: {"input": torch.zeros(1)})
    lost = [case for case in smoke.cases() if case.family == "gemma4" and case.module is None]
    result = smoke.run(next(case for case in lost if case.name == "gemma4/Gemma4VisionModel"))
    assert result.status == smoke.FAILED
    assert "the tiny model of gemma4 does not call it" in result.reasons[0]
