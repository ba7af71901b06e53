# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a quantized model of 500 MB in float32, against safetensors with the bytes that are stored.

safetensors syncs its file to disk as save_quantized does, and reads each page of it. `float copies`: the stored
integers as float32 in new memory, which is what a loaded model has, by torch.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import pyquant
from benchmarks.rivals import Rivals, rivals


@cache
def model() -> tuple[Any, tempfile.TemporaryDirectory[str]]:
    """A converted decoder of 125 M parameters, and a folder for its files."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=12000, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    q = pyquant.prepare(LlamaForCausalLM(config).eval(), pyquant.Policy.preset("w8a8-fast"))
    pyquant.calibrate(q, [{"input_ids": torch.arange(16)[None]}], progress=False)
    pyquant.convert(q)
    return q, tempfile.TemporaryDirectory(prefix="pyquant-bench-")


def stored() -> tuple[Path, dict[str, Tensor]]:
    """The saved folder, and the tensors of its file."""
    q, folder = model()
    path = Path(folder.name) / "saved"
    pyquant.save_quantized(q, path)
    return path, {name: tensor.clone() for name, tensor in load_file(path / "quantized.safetensors").items()}


@rivals("pyquant", "safetensors", threads=(2,), seconds=10.0)
def bench_save_quantized() -> Rivals:
    path, tensors = stored()
    theirs = path.with_name("theirs.safetensors")

    def save() -> None:
        save_file(tensors, theirs, metadata={"format": "pt"})
        handle = os.open(theirs, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    save()
    assert theirs.stat().st_size == (path / "quantized.safetensors").stat().st_size
    return {"pyquant": lambda: pyquant.save_quantized(model()[0], path), "safetensors": save}


@rivals("pyquant", "safetensors", "float copies", threads=(2,), seconds=10.0)
def bench_load_quantized() -> Rivals:
    path, tensors = stored()
    file = path / "quantized.safetensors"

    def load() -> int:
        return sum(int(t.reshape(-1).view(torch.uint8)[::4096].sum()) for t in load_file(file).values())

    return {
        "pyquant": lambda: pyquant.load_quantized(path),
        "safetensors": load,
        "float copies": lambda: [tensor.float() for tensor in tensors.values()],
    }
