# SPDX-License-Identifier: Apache-2.0
"""A saved folder is a Hugging Face folder: generation config, tokenizer, processor, chat template, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3VLForConditionalGeneration

import pyquant
from pyquant import Policy
from pyquant.cli.checkpoints import model_class
from pyquant.errors import CheckpointError, ModelError
from tests import checkpoints

GENERATION = {
    "eos_token_id": [2, 0],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
}
IDS = torch.arange(10, 18)[None]
TEXT = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
ALWAYS = ["README.md", "config.json", "generation_config.json", "quantized.safetensors", "quantization.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with everything that a real one has, and a file that is none of our business."""
    folder = checkpoints.qwen3_vl(tmp_path_factory.mktemp("hub") / "Tiny-VL")
    GenerationConfig(**GENERATION).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


def quantized(fp: Any) -> Any:
    q = pyquant.prepare(fp, Policy.preset("w8a16"))
    pyquant.calibrate(q, [{"input_ids": IDS}], progress=False)
    pyquant.convert(q, unused=["model.visual*", "model.language_model:deepstack_*", "*:fused"])
    return q


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return quantized(Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager"))


@pytest.fixture(scope="module")
def saved(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "q"
    pyquant.save_quantized(loaded, path, facts={"calibration": "1 prompt | of 8 tokens"})
    return path


def test_the_generation_config_comes_back(loaded: Any, saved: Path) -> None:
    again = pyquant.load_quantized(saved)
    for key, value in GENERATION.items():
        assert getattr(again.generation_config, key) == value, key
    assert again.generation_config.to_dict() == loaded.generation_config.to_dict()


def test_an_answer_stops_where_it_stopped_before(folder: Path, tmp_path: Path) -> None:
    fp = Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    fp.generation_config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    free = quantized(fp).generate(input_ids=IDS)[0, IDS.shape[1] :].tolist()
    assert len(free) == 12
    stop = free[3]
    fp.generation_config.eos_token_id = stop
    q = quantized(fp)
    pyquant.save_quantized(q, tmp_path / "q")
    for tree in (q, pyquant.load_quantized(tmp_path / "q")):
        assert tree.generate(input_ids=IDS)[0, IDS.shape[1] :].tolist() == free[: free.index(stop) + 1]
    fp.generation_config.eos_token_id = None
    passed = pyquant.load_quantized(tmp_path / "q", fp)  # the folder's, not that of the float model
    assert passed.generation_config.eos_token_id == stop


def test_transformers_reads_the_folder(saved: Path, folder: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == sorted([*ALWAYS, *TEXT, "preprocessor_config.json"])
    for name in (*TEXT, "preprocessor_config.json"):
        assert (saved / name).read_bytes() == (folder / name).read_bytes()
    assert AutoConfig.from_pretrained(saved).model_type == "qwen3_vl"
    original, copied = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(saved)
    chat = [{"role": "user", "content": "read the digits"}]
    assert copied.apply_chat_template(chat)["input_ids"] == original.apply_chat_template(chat)["input_ids"]
    assert GenerationConfig.from_pretrained(saved).eos_token_id == [2, 0]
    assert type(checkpoints.image_processor(saved)) is type(checkpoints.image_processor(folder))
    reader = pyquant.calibration.load_reader(saved)
    assert reader.processor is not None


def test_the_model_card_is_what_the_hub_expects(saved: Path, folder: Path) -> None:
    text = (saved / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "license": "apache-2.0",
        "library_name": "pyquant",
        "pipeline_tag": "image-text-to-text",
        "tags": ["pyquant", "quantized", "circle", "qwen3_vl"],
    }
    assert "# Tiny-VL, quantized (w8a16)" in text
    assert f"| base model | {folder} |" in text
    assert "| calibration | 1 prompt \\| of 8 tokens |" in text
    assert f"{(saved / 'quantized.safetensors').stat().st_size:,} bytes here" in text
    assert f"transformers {__import__('transformers').__version__}" in text
    (saved / "README.md").write_text("edited by hand")  # as people do on the hub
    pyquant.load_quantized(saved)


def test_a_hub_name_is_the_base_model(tmp_path: Path) -> None:
    fp = checkpoints.qwen3_vl_model()
    fp.config._name_or_path = "Qwen/Qwen3-VL-2B-Instruct"  # as from_pretrained leaves it
    pyquant.save_quantized(quantized(fp), tmp_path / "q")
    front = yaml.safe_load((tmp_path / "q" / "README.md").read_text().split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("Qwen/Qwen3-VL-2B-Instruct", "quantized")
    again = pyquant.load_quantized(tmp_path / "q")
    pyquant.save_quantized(again, tmp_path / "again")
    for file in (tmp_path / "q").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_tokenizer_and_a_processor_write_their_own_files(folder: Path, tmp_path: Path) -> None:
    fp = checkpoints.qwen3_vl_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = checkpoints.image_processor(folder)
    pyquant.save_quantized(quantized(fp), tmp_path / "q", tokenizer=tokenizer, processor=images)
    assert AutoTokenizer.from_pretrained(tmp_path / "q").get_vocab() == tokenizer.get_vocab()
    assert checkpoints.image_processor(tmp_path / "q").patch_size == images.patch_size
    pyquant.load_quantized(tmp_path / "q")
    with pytest.raises(CheckpointError, match="tokenizer= is a str; expected a tokenizer of transformers"):
        pyquant.save_quantized(quantized(fp), tmp_path / "r", tokenizer="Qwen/Qwen3")
    assert not (tmp_path / "r").exists()


def test_a_changed_companion_is_noticed(saved: Path, tmp_path: Path) -> None:
    copied = checkpoints.copy(saved, tmp_path / "q")
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is corrupt: the checksum of 'tokenizer.json' is not the one in"):
        pyquant.load_quantized(copied)
    assert set(json.loads((saved / "quantization.json").read_text())["sha256"]) == {
        *TEXT, "preprocessor_config.json", "config.json", "generation_config.json", "quantized.safetensors"
    }  # fmt: skip


def test_a_source_that_was_not_fetched(folder: Path, loaded: Any, tmp_path: Path) -> None:
    source = checkpoints.copy(folder, tmp_path / "m")
    (source / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer.json' is a Git LFS pointer"):
        pyquant.save_quantized(loaded, tmp_path / "q", source=source)
    with pytest.raises(CheckpointError, match=r"source='.*config.json' is a file; give the checkpoint folder"):
        pyquant.save_quantized(loaded, tmp_path / "q", source=folder / "config.json")
    assert not (tmp_path / "q").exists()


def test_a_saved_folder_is_no_float_checkpoint(saved: Path) -> None:
    """transformers would read its integers as weights; the commands refuse it by the name that its config has."""
    assert json.loads((saved / "config.json").read_text())["quantization_config"] == {"quant_method": "pyquant"}
    with pytest.raises(ModelError, match=r"quantized already \(pyquant"):
        model_class(str(saved))
    assert not hasattr(pyquant.load_quantized(saved).config, "quantization_config")
