# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders whose files were not fetched, are cut off, or contradict each other: one line, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_runs import Done
from safetensors.torch import load_file, save_file

from pyquant import calibration
from pyquant.cli import checkpoints as command
from pyquant.errors import CalibrationError, ModelError
from tests import checkpoints

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
Run = Callable[..., Done]
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.qwen3_vl(tmp_path_factory.mktemp("checkpoint") / "whole")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "sharded"
    checkpoints.qwen3_vl_model().save_pretrained(folder, max_shard_size="60KB")
    checkpoints.processor_files(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def first(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


WEIGHTS: dict[str, tuple[Change, str]] = {
    "pointer": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        r"model.safetensors' is a Git LFS pointer.*`git lfs pull`",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model.safetensors' is empty \(0 bytes\)"),
    "cut off": (
        lambda f: cut(f / "model.safetensors"),
        "model.safetensors' is cut off or damaged .* bytes.*download it again",
    ),
    "config pointer": (lambda f: (f / "config.json").write_bytes(POINTER), "config.json' is a Git LFS pointer"),
    "config empty": (lambda f: (f / "config.json").write_bytes(b""), "config.json' is empty"),
    "config text": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
}
SHARDS: dict[str, tuple[Change, str]] = {
    "pointer": (lambda f: first(f).write_bytes(POINTER), "model-00001-of-.*' is a Git LFS pointer.*`git lfs pull`"),
    "empty": (lambda f: first(f).write_bytes(b""), "model-00001-of-.*' is empty"),
    "cut off": (lambda f: cut(first(f)), "model-00001-of-.*' is cut off or damaged"),
    "absent": (
        lambda f: first(f).unlink(),
        "lacks 1 of the .* weights files that model.safetensors.index.json names, .*'model-00001-of",
    ),
    "index pointer": (
        lambda f: (f / "model.safetensors.index.json").write_bytes(POINTER),
        "index.json' is a Git LFS pointer",
    ),
    "index text": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "index.json' is no index of weights",
    ),
}


def broken(source: Path, to: Path, change: Change, words: str) -> None:
    folder = checkpoints.copy(source, to)
    change(folder)
    with pytest.raises(ModelError, match=words) as error:
        command.load(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_there(name: str, whole: Path, tmp_path: Path) -> None:
    broken(whole, tmp_path / "m", *WEIGHTS[name])


@pytest.mark.parametrize("name", SHARDS)
def test_shards_that_are_not_there(name: str, sharded: Path, tmp_path: Path) -> None:
    broken(sharded, tmp_path / "m", *SHARDS[name])


def test_a_bin_file_that_is_cut_off(whole: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy(whole, tmp_path / "m", "model.safetensors")
    torch.save(load_file(whole / "model.safetensors"), folder / "pytorch_model.bin")
    command.load(str(folder))
    cut(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin' is cut off \("):
        command.load(str(folder))
    (folder / "pytorch_model.bin").unlink()
    (folder / "model-Q4.gguf").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"model-Q4.gguf' is a Git LFS pointer"):
        command.load(str(folder))


def test_the_command_says_it_in_a_line_with_exit_code_2(run: Run, sharded: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy(sharded, tmp_path / "m")
    first(folder).write_bytes(POINTER)
    for words in (("trace", "--model", folder), ("sensitivity", "--model", folder)):
        done = run(*words)
        assert done.code == 2
        assert done.err.startswith("pyquant: ModelError: the weights file ")
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_a_processor_file_that_was_not_fetched(name: str, whole: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy(whole, tmp_path / "m")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CalibrationError, match=rf"{name}' is a Git LFS pointer.*`git lfs pull`"):
        calibration.load_reader(folder)


@pytest.mark.parametrize("name", ["x.jsonl", "x.safetensors", "x.pt"])
def test_calibration_data_that_was_not_fetched(name: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CalibrationError, match=rf"{name}' is a Git LFS pointer"):
        calibration.read(tmp_path / name, whole)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "torchao", "quant_type": "int4wo"}, "torchao"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_quantized_checkpoint_is_named(
    quantization: dict[str, object], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = checkpoints.copy(whole, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for place in (config, config["text_config"]):
        place["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=rf"is quantized already \({words}, as .*give the unquantized model"):
            command.load(str(folder))
        del place["quantization_config"]


def test_a_tie_flag_that_contradicts_the_tensors(whole: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy(whole, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"tie_word_embeddings=false, but the weights have no 'lm_head.weight'; set it to true"
    ):
        command.load(str(folder))
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    table = tensors["model.language_model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": table.clone()}, folder / "model.safetensors", {"format": "pt"})
    command.load(str(folder))  # the same values: nothing contradicts
    save_file({**tensors, "lm_head.weight": table + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"tie_word_embeddings=true, but the weights have an 'lm_head.weight' that differs"
    ):
        command.load(str(folder))
