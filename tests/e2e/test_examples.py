# SPDX-License-Identifier: Apache-2.0
"""The example scripts work: each is run, and its output is compared with the library.

The digits demos have tests of their own, test_digits_*.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pyquant
from examples import generate_over_bundle, quantize_model, quantize_module, smollm2
from examples.digits import vlm_data
from pyquant import calibration
from pyquant.models import by_name
from tests import checkpoints

PROMPT = "what is this ?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a tiny checkpoint folder with its processor; a picture; two lines. `out`, what the script made of it."""
    place = tmp_path_factory.mktemp("examples")
    checkpoints.qwen3_vl(place / "model")
    checkpoints.picture(place / "a.png", 16, 24)
    checkpoints.lines(place / "c.jsonl", {"image": "a.png", "prompt": PROMPT}, {"prompt": "read the digits"})
    quantize_model.main(str(place / "out"), str(place / "model"), str(place / "c.jsonl"))
    return place


def test_quantize_module_writes_a_file_that_runs_as_simulated(tmp_path: Path, capsys: Any) -> None:
    quantize_module.main(str(tmp_path / "mlp.circle"))
    printed = capsys.readouterr().out
    assert "0 tensors without qparams" in printed
    assert "mlp: exported program equals eager; 6 operators" in printed
    assert pyquant.circle.check(tmp_path / "mlp.circle") == []


def test_quantize_model_writes_a_bundle_and_a_checkpoint(place: Path) -> None:
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert {"vision_t1_h4_w6", "decode", "lm_head"} <= set(manifest["graphs"])
    assert manifest["image_grids"] == [[1, 4, 6]]
    for entry in manifest["graphs"].values():
        assert pyquant.circle.check(place / "out" / entry["file"]) == []
    q: Any = pyquant.load_quantized(place / "out" / "quantized")
    for batch in calibration.read(place / "c.jsonl", place / "model"):
        with torch.no_grad():
            assert q(**batch).logits.isfinite().all()


def test_generate_over_bundle_says_what_the_quantized_model_says(place: Path, capsys: Any) -> None:
    folders = (str(place / "out"), str(place / "model"), str(place / "a.png"))
    generate_over_bundle.main(*folders, PROMPT)
    printed = capsys.readouterr().out
    reader = calibration.load_reader(place / "model")
    batch = reader.read(calibration.Line("here", PROMPT, (place / "a.png",)))
    q: Any = pyquant.load_quantized(place / "out" / "quantized")
    tokens = q.generate(**batch, max_new_tokens=16, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert printed == f"answer: {reader.tokenizer.decode(tokens)}\n"


def test_smollm2_measures_the_text_of_files_as_that_of_the_tree(tmp_path: Path) -> None:
    """By a tiny model of the same family, whose tokens are bytes; the real weights are tests/e2e/test_smollm2.py's."""
    text = torch.tensor(list(b"Files compute what was simulated. The rest is rounding."[:48])).reshape(-1, 16)
    q: Any = smollm2.quantize(by_name("llama").example.tiny_model(), "w8a16", text)
    smollm2.export(q, tmp_path / "bundle", window=16)
    eager = smollm2.perplexity(lambda ids: q(input_ids=ids).logits, text)
    assert smollm2.perplexity(smollm2.Files(tmp_path / "bundle"), text) == pytest.approx(eager, rel=2e-3)


@pytest.mark.slow
def test_the_digits_model_answers_by_the_scripts_alone(tmp_path: Path, capsys: Any) -> None:
    quantize_model.main(str(tmp_path / "out"))
    capsys.readouterr()
    generate_over_bundle.main(str(tmp_path / "out"))
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    (question,) = vlm_data.questions("heldout", 1, seed=3)
    assert printed["question"] == vlm_data.words(question.prompt)
    assert printed["expected"] == vlm_data.words(question.answer)
    q: Any = pyquant.load_quantized(tmp_path / "out" / "quantized")
    inputs = vlm_data.inputs([question])
    tokens = q.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert printed["answer"] == vlm_data.words(tokens.tolist())
