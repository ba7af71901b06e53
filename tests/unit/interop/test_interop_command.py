# SPDX-License-Identifier: Apache-2.0
"""`pyquant quantize` on folders of other tools, from the files that they wrote to Circle files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stored_cases as cases
import torch
from circle_schema.v0_10.circle.Model import Model, ModelT
from test_interop_integers import stored_bytes

import pyquant
from pyquant import calibration
from pyquant.cli.main import main
from pyquant.verify import Session
from tests import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("interop")
    checkpoints.picture(place / "a.png", 16, 16)
    checkpoints.lines(place / "vl.jsonl", {"image": "a.png", "prompt": "what is this ?"}, {"prompt": "the digits"})
    checkpoints.lines(place / "text.jsonl", {"prompt": "what is this ?"}, {"prompt": "read the digits"})
    return place


def run(place: Path, data: str, *more: str) -> int:
    words = ["quantize", "--model", str(place / "model"), "--data", str(place / data), "--out", str(place / "out")]
    return main([*words, *more])


def test_a_qwen3_vl_of_llm_compressor(place: Path, tmp_path: Path, capsys: Any) -> None:
    """4-bit weights of the text model with static inputs; the policy's 8 bits hold for the rest."""
    fp = checkpoints.qwen3_vl_model()
    inputs = dict.fromkeys(cases.linears(fp), (0.05, -3))
    truths = cases.compressed(fp, place / "model", inputs=inputs)
    checkpoints.processor_files(place / "model")
    assert run(place, "vl.jsonl", "--recipe", "w8a16") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "grids of the compressed-tensors checkpoint: 14 weights, 14 activations; the rest is calibrated" in said
    assert "grids of the compressed-tensors checkpoint" in (place / "out" / "quantized" / "README.md").read_text()
    found: set[bytes] = set()
    for file in (place / "out").glob("*.circle"):
        model = ModelT.InitFromObj(Model.GetRootAs(file.read_bytes()))
        found |= {bytes(buffer.data) for buffer in model.buffers if buffer.data is not None}
    assert all(stored_bytes(truth) in found for truth in truths.values())
    q: Any = pyquant.load_quantized(place / "out" / "quantized")
    assert int(q.model.language_model.layers[0].mlp.gate_proj.site("act_in").zero_point) == -3
    batch = calibration.read(place / "text.jsonl", place / "model")[0]
    expected = q.generate(**batch, max_new_tokens=4, do_sample=False)
    with Session(place / "out", runtime="tico") as session:
        assert torch.equal(session.generate(**batch, max_new_tokens=4, do_sample=False), expected)


def test_groups_by_name_only(tmp_path: Path, capsys: Any) -> None:
    cases.gptq(cases.llama(num_hidden_layers=1), tmp_path / "model", group=32)
    checkpoints.processor_files(tmp_path / "model", images=False)
    checkpoints.lines(tmp_path / "text.jsonl", {"prompt": "what is this ?"})
    assert run(tmp_path, "text.jsonl", "--recipe", "w8a16") == 2
    said = capsys.readouterr().err
    assert "has a scale for every 32 columns" in said
    assert "--requantize" in said
    with pytest.warns(UserWarning, match="7 weights are quantized anew"):
        assert run(tmp_path, "text.jsonl", "--recipe", "w8a16", "--requantize") == 0, capsys.readouterr().err
    assert "grids of" not in capsys.readouterr().out
    assert "--requantize --out" in (tmp_path / "out" / "quantized" / "README.md").read_text()
