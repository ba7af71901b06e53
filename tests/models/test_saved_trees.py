# SPDX-License-Identifier: Apache-2.0
"""Saved models and state dicts of whole models: what nobody may take for something else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import pyquant
from pyquant import checkpoint, models
from pyquant.errors import CheckpointError
from pyquant.models.llama import example

torch.set_num_threads(1)


def tree(*, tied: bool) -> tuple[Any, dict[str, Any]]:
    fp = example.tiny_model()
    batch = example.example_inputs(fp)
    if not tied:
        fp.lm_head.weight = torch.nn.Parameter(fp.lm_head.weight.detach().flip(0).clone())
        fp.config.tie_word_embeddings = False
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a16"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return q, batch


@torch.no_grad()
def test_an_untied_state_dict_does_not_fit_a_tied_tree() -> None:
    """The two tensors would overwrite each other: -3.2 dB, and `All keys matched`."""
    q, batch = tree(tied=True)
    before = q(**batch).logits
    other, _ = tree(tied=False)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' are one tensor here and differ there"):
        q.load_state_dict(other.state_dict())
    assert torch.equal(q(**batch).logits, before)
    q.load_state_dict(copy.deepcopy(tree(tied=True)[0].state_dict()))
    assert torch.equal(q(**batch).logits, before)


def test_transformers_does_not_read_integers_as_weights(tmp_path: Path) -> None:
    q, _ = tree(tied=True)
    pyquant.save_quantized(q, tmp_path / "q")
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "q")


@torch.no_grad()
def test_a_folder_of_pyquant_0_1_is_read_and_replaced(tmp_path: Path) -> None:
    q, batch = tree(tied=True)
    folder = tmp_path / "q"
    pyquant.save_quantized(q, folder)
    (folder / "quantized.safetensors").rename(folder / "model.safetensors")
    index = json.loads((folder / "quantization.json").read_text())
    index["sha256"]["model.safetensors"] = index["sha256"].pop("quantized.safetensors")
    (folder / "quantization.json").write_text(json.dumps(index))
    assert torch.equal(pyquant.load_quantized(folder)(**batch).logits, q(**batch).logits)
    pyquant.save_quantized(q, folder)
    assert not (folder / "model.safetensors").exists()
    assert torch.equal(pyquant.load_quantized(folder)(**batch).logits, q(**batch).logits)


@pytest.mark.parametrize("family", models.FAMILIES)
@torch.no_grad()
def test_a_folder_is_loaded_without_a_float_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the class that is built are on the meta device, so that none is allocated; the numbers are the same,
    those of tables and buffers too."""
    made: list[torch.nn.Module] = []
    build = checkpoint._build
    monkeypatch.setattr(checkpoint, "_build", lambda *given: made.append(build(*given)) or made[0])
    example = models.by_name(family).example
    fp = example.tiny_model()
    batch = example.example_inputs(fp)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q")
    assert all(value.is_meta for value in made[0].parameters())
    assert not any(value.is_meta for value in [*loaded.parameters(), *loaded.buffers()])
    ours, theirs = loaded(**batch), q(**batch)
    name = "logits" if hasattr(theirs, "logits") else "last_hidden_state"
    assert torch.equal(getattr(ours, name), getattr(theirs, name))
