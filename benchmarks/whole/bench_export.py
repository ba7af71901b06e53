# SPDX-License-Identifier: Apache-2.0
"""From a quantized decoder to a file: against torch.export of the float model, and against TICO's conversion of one
layer. Writing and checking a file: against a copy of its bytes."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import warnings
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextMLP

import pyquant
from benchmarks.rivals import Rivals, rivals
from pyquant.exporter.profile import TensorSpec
from pyquant.models import llama
from pyquant.wrap import QModule

LENGTH = 32


@cache
def model(layers: int, hidden: int = 64) -> tuple[nn.Module, QModule]:
    """A decoder of so many layers, and its converted tree."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=layers, vocab_size=256, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    fp = LlamaForCausalLM(config).eval()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8-fast"))
    pyquant.calibrate(q, [{"input_ids": torch.randint(0, 256, (1, LENGTH))}], progress=False)
    pyquant.convert(q)
    return fp, q


class Logits(nn.Module):
    """The float model on ids alone."""

    def __init__(self, fp: nn.Module) -> None:
        super().__init__()
        self.fp = fp

    def forward(self, ids: Tensor) -> Tensor:
        return self.fp(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def exported(layers: int) -> Rivals:
    fp, q = model(layers)
    graphs = llama.Profile(LENGTH, prefill_lengths=(LENGTH,)).graphs(q)
    part, profile = next(graph for name, graph in graphs.items() if name.startswith("prefill"))
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)

    def trace() -> Any:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            return torch.export.export(Logits(fp), (ids,), strict=False)

    return {"pyquant": lambda: pyquant.export(part, profile), "torch.export of float": trace}


@rivals("pyquant", "torch.export of float", threads=(1,), short=True, seconds=1.0)
def bench_export_of_4_layers() -> Rivals:
    return exported(4)


@rivals("pyquant", "torch.export of float", threads=(1,), seconds=1.0)
def bench_export_of_28_layers() -> Rivals:
    return exported(28)


@rivals("pyquant", "TICO", threads=(1,), seconds=2.0)
def bench_mlp_to_a_file() -> Rivals:
    """A gated MLP of 1024 x 3072, converted, to the bytes of its file."""
    import tico
    from tico import quantization
    from tico.quantization.config.ptq import PTQConfig

    config = Qwen3VLTextConfig(hidden_size=1024, intermediate_size=3072)
    fp, x = Qwen3VLTextMLP(config).eval(), torch.randn(1, LENGTH, 1024)
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8-fast"))
    pyquant.calibrate(q, [(x,)], progress=False)
    pyquant.convert(q)
    profile = pyquant.ExportProfile({"x": TensorSpec(tuple(x.shape))})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = quantization.prepare(copy.deepcopy(fp), PTQConfig())
        theirs(x)
        theirs = quantization.convert(theirs, inplace=True)

    def convert() -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tico.convert(theirs, (x,), strict=False).circle_binary  # type: ignore[no-any-return]

    calls: Rivals = {"pyquant": lambda: pyquant.export(q, profile).to_bytes(), "TICO": convert}
    sizes = {name: len(call()) for name, call in calls.items()}
    assert max(sizes.values()) < 1.2 * min(sizes.values()), f"the files are of {sizes} bytes"
    return calls


@rivals("pyquant", "copy of the file, with fsync", threads=(1,), seconds=3.0)
def bench_write_a_file() -> Rivals:
    """36 MB of 8-bit weights: the plan to a checked file, on the disk."""
    _, q = model(3, 1024)
    graphs = llama.Profile(LENGTH, prefill_lengths=(LENGTH,)).graphs(q)
    part, profile = next(graph for name, graph in graphs.items() if name.startswith("prefill"))
    folder = Path(tempfile.mkdtemp())
    weakref.finalize(q, shutil.rmtree, folder)
    file, other = folder / "own.circle", folder / "copy.circle"
    pyquant.export(part, profile).save(file)
    program = pyquant.export(part, profile).mapped(file)

    def copied() -> None:
        shutil.copyfile(file, other)
        with other.open("rb") as written:
            os.fsync(written.fileno())

    return {"pyquant": lambda: program.save(folder / "own2.circle"), "copy of the file, with fsync": copied}
