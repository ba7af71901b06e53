# SPDX-License-Identifier: Apache-2.0
"""A bundle of a 2B model's size, made with random weights and run by the native program: seconds to load, tokens a
second of prompt and answer, and the memory that the process took beside what its files have.

    python -m benchmarks.runner.bundle FOLDER [--layers 28] [--vocabulary 151936] [--tokens 32]

FOLDER is written when it is not there (w4a16-fast, all graphs in one file; 8 GB of memory, 3 minutes). Sizes are those
of Qwen3-VL-2B's language model. Speed does not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pyquant
from benchmarks.runner.clock import race
from pyquant import circle
from pyquant._launch import program
from pyquant.models import llama

PROMPT, LONGEST = 256, 1024


def make(folder: Path, layers: int, vocabulary: int) -> None:
    """The bundle, from a model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=6144, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        num_hidden_layers=layers, vocab_size=vocabulary, max_position_embeddings=LONGEST, tie_word_embeddings=True,
        attn_implementation="sdpa", dtype=torch.bfloat16, eos_token_id=None,
    )  # fmt: skip
    fp = LlamaForCausalLM(config).eval()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16-fast"))
    pyquant.calibrate(q, [{"input_ids": torch.randint(0, vocabulary, (1, 64))}])
    pyquant.convert(q)
    pyquant.export_bundle(q, folder, llama.Profile(LONGEST, prefill_lengths=(PROMPT,), one_file=True))


def load(path: Path) -> None:
    """A runner made, checks and tables included, beside opening and mapping the file."""

    def mapped() -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert len(pages[:4] + pages[-4:]) == 8

    found = race({"open and mmap": mapped, "circle.Runner": lambda: circle.Runner(path)}, 5)
    found.show(f"loading {path.stat().st_size / 1e6:,.0f} MB", "open and mmap")


def cache_bytes(manifest: dict[str, Any]) -> int:
    """Of keys and values, as the decode graph takes them."""
    entries = [entry for entry in manifest["graphs"]["decode"]["inputs"] if "past" in entry["name"]]
    return sum(math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize for entry in entries)


def generate(folder: Path, tokens: int, threads: int) -> dict[str, Any]:
    """What the native program says of one answer, and the peak memory (bytes) of its process."""
    ids = np.random.default_rng(0).integers(0, 1000, PROMPT)
    command = [str(program()), "generate", str(folder), "--ids", ",".join(map(str, ids)), "--greedy", "--json",
               "--max-new-tokens", str(tokens), "--threads", str(threads)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        peak = 0
        while running.poll() is None:
            peak = max(peak, _peak(running.pid))
            time.sleep(0.01)
        said = running.communicate()[0]
    if running.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {running.returncode}")
    return {**json.loads(said), "peak": peak}


def _peak(process: int) -> int:
    """The most memory (bytes) that a running process has had, pages of its mapped files included."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not args.folder.exists():
        make(args.folder, args.layers, args.vocabulary)
    weights = sum(path.stat().st_size for path in args.folder.glob("*.circle"))
    cache = cache_bytes(json.loads((args.folder / "manifest.json").read_text()))
    load(max(args.folder.glob("*.circle"), key=lambda path: path.stat().st_size))
    found = generate(args.folder, args.tokens, args.threads)
    prompt, whole = found["seconds_to_first_token"], found["seconds"]
    print(f"{args.threads} thread(s): files read and {PROMPT} tokens in after {prompt:.2f} s, then "
          f"{(args.tokens - 1) / (whole - prompt):.2f} tokens/s")  # fmt: skip
    megabytes = {"weights": weights, "cache": cache, "peak of the process": found["peak"],
                 "beyond weights and cache": found["peak"] - weights - cache}  # fmt: skip
    print(", ".join(f"{name} {count / 1e6:,.0f} MB" for name, count in megabytes.items()))


if __name__ == "__main__":
    main()
