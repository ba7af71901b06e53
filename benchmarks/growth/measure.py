# SPDX-License-Identifier: Apache-2.0
"""Seconds of each step from a float model to a file, for one size of the model and its data.

It owns what is measured. Which sizes are asked for and how they are shown is __main__.py.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pyquant
from pyquant.models import llama

STEPS = ("prepare", "calibrate", "convert", "export", "write", "save", "load")
_AGAIN = 8.0  # seconds: runs are repeated until they took that long, at most seven; the fastest of each step counts


@dataclass(frozen=True)
class Size:
    """Of a decoder-only model (two heads of a quarter of the width each side), and of its data."""

    layers: int = 4
    hidden: int = 256
    sequence: int = 64
    samples: int = 1


@dataclass
class Clock:
    """Seconds by step; the fastest of several runs."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds[step] = min(took, self.seconds.get(step, took))


def measure(size: Size, recipe: str = "w8a8-fast") -> dict[str, float]:
    """Seconds of each of STEPS: of prepare to convert on all samples, of one prefill graph as long as a sample, of its
    file, and of the quantized model's folder."""
    torch.manual_seed(0)
    fp = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.hidden, intermediate_size=3 * size.hidden, num_attention_heads=4, num_key_value_heads=2,
            num_hidden_layers=size.layers, vocab_size=512, max_position_embeddings=size.sequence,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    batches = [{"input_ids": torch.randint(0, 512, (1, size.sequence))} for _ in range(size.samples)]
    clock = Clock()
    folder = Path(tempfile.mkdtemp())
    try:
        began = time.perf_counter()
        for _ in range(7):
            _run(fp, batches, recipe, size, folder, clock)
            if time.perf_counter() - began > _AGAIN:
                break
    finally:
        shutil.rmtree(folder)
    return clock.seconds


def _run(
    fp: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]], recipe: str, size: Size, folder: Path, clock: Clock
) -> None:
    with clock.time("prepare"):
        q = pyquant.prepare(fp, pyquant.Policy.preset(recipe))
    with clock.time("calibrate"):
        pyquant.calibrate(q, batches, progress=False)
    with clock.time("convert"):
        pyquant.convert(q)
    graphs = llama.Profile(size.sequence, prefill_lengths=(size.sequence,)).graphs(q)
    part, profile = next(graph for name, graph in graphs.items() if name.startswith("prefill"))
    with clock.time("export"):
        program = pyquant.export(part, profile)
    with clock.time("write"):
        program.save(folder / "prefill.circle")
    with clock.time("save"):
        pyquant.save_quantized(q, folder / "quantized")
    with clock.time("load"):
        pyquant.load_quantized(folder / "quantized")
