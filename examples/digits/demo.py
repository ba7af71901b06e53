# SPDX-License-Identifier: Apache-2.0
"""The whole line on a trained VLM: quantize, write a bundle, answer questions by it. Run by `make demo`.
It owns what is printed; the work is done by pyquant's public functions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

import pyquant
from examples.digits import vlm, vlm_data
from examples.digits.families import FAMILIES, Family
from examples.digits.vlm_data import MAX_ANSWER, TASKS, TOKEN, Question, words
from pyquant import evaluation
from pyquant.evaluation import Forced, Subject, TaskResult
from pyquant.verify import Session

RECIPES = ("w8a8", "w8a16", "w4a16")
QWEN3_VL = FAMILIES["qwen3_vl"]
FLOAT, EAGER, CIRCLE = "float (HF)", "eager, quantized", "Circle (the files)"


@dataclass(frozen=True)
class Answers:
    """Log probabilities of the right answers' tokens, and which of them the model would have chosen itself.

    Teacher forced: an answer is right, greedily, exactly when each of its tokens is the likeliest after the ones
    before. So one run gives exact match and likelihood both.
    """

    log_probs: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]

    @property
    def exact(self) -> float:
        """Share of questions whose every token is chosen."""
        return sum(bool(row.all()) for row in self.chosen) / len(self.chosen)

    @property
    def nll(self) -> float:
        """Nats per token of the right answers."""
        return -float(torch.cat(self.log_probs).mean())

    @classmethod
    def of(cls, logits: Sequence[Tensor], asked: Sequence[Question]) -> Answers:
        """`logits` (answer tokens, vocabulary) of each question."""
        log_probs, chosen = [], []
        for row, question in zip(logits, asked, strict=True):
            right = torch.tensor(question.answer)
            log_probs.append(row.double().log_softmax(-1)[range(len(right)), right])
            chosen.append(row.argmax(-1) == right)
        return cls(tuple(log_probs), tuple(chosen))


def quantize(fp: nn.Module, recipe: str, samples: int, family: Family = QWEN3_VL) -> pyquant.QModel:
    """By the whole recipe, its steps included."""
    return pyquant.quantize(
        fp, list(vlm_data.calibration_batches(samples, inputs=family.inputs)), recipe, progress=True
    )


def forced(asked: Sequence[Question], batch_size: int, family: Family = QWEN3_VL) -> list[Forced]:
    """Batches of questions with their right answers, as many rows as a bundle of this batch size takes."""
    found = []
    for part in _parts(asked, batch_size):
        filled = [*part, *part[-1:] * (batch_size - len(part))]  # a bundle's batch is fixed
        whole = family.inputs(part, answers=True, padding="left")
        found.append(Forced(family.inputs(filled), whole, tuple(question.answer for question in part)))
    return found


def by_model(model: nn.Module, asked: Sequence[Question], batch_size: int, family: Family = QWEN3_VL) -> Answers:
    """By HF's model or the quantized tree, prompts and answers in one call."""
    return _answers(evaluation.ModelSubject("model", model), asked, batch_size, family)


def by_session(session: Session, asked: Sequence[Question], batch_size: int, family: Family = QWEN3_VL) -> Answers:
    """By the files: prefill and decode graphs, token by token, each next token the right one."""
    return _answers(evaluation.FilesSubject("files", session), asked, batch_size, family)


def _answers(subject: Subject, asked: Sequence[Question], batch_size: int, family: Family) -> Answers:
    parts = tqdm(forced(asked, batch_size, family), desc=subject.name, unit="batch", disable=None)
    return Answers.of([row for part in parts for row in subject.forced(part)], asked)


def _parts(asked: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    return (asked[start : start + size] for start in range(0, len(asked), size))


def demo(
    family: Family,
    recipe: str,
    out: Path,
    asked: Sequence[Question],
    samples: int,
    batch_size: int,
    console: Console,
) -> None:
    """All steps for one recipe; prints as it goes. The bundle is `out`/digits_vlm."""
    fp = family.load_model()
    console.rule(f"[bold]{type(fp).__name__}, {recipe}")
    q = quantize(fp, recipe, samples, family)
    began = time.perf_counter()
    folder = out / "digits_vlm"
    programs = pyquant.export_bundle(q, folder, family.profile(batch_size))
    console.print(f"exported {len(programs)} graphs and wrote {folder}/ in {time.perf_counter() - began:.1f} s")
    console.print("(files are whole: the vision tower has a graph per shape, the decoder in prefill and decode)")
    faults = {name: pyquant.circle.check(folder / f"{name}.circle") for name in programs}
    missing = sum(len(program.missing_qparams()) for program in programs.values())
    console.print(f"native check: {sum(map(len, faults.values()))} faults; {missing} tensors without qparams")

    task = evaluation.Likelihood(tuple(forced(asked, batch_size, family)), f"{recipe}: held-out handwritten digits")
    with Session(folder) as session:
        found = pyquant.evaluate({FLOAT: fp, EAGER: q, CIRCLE: session}, [task])
        evaluation.show(found, console)
        sizes = (family.checkpoint / "model.safetensors").stat().st_size, sum(g["bytes"] for g in _graphs(folder))
        show(found[task.name], asked, sizes, console)
        examples(session, q, asked[:batch_size], batch_size, console, family)
    if any(faults.values()) or missing:
        sys.exit(f"{folder}: faults {faults}, {missing} tensors without qparams; expected none")


def show(found: TaskResult, asked: Sequence[Question], sizes: tuple[int, int], console: Console) -> None:
    """What this task has beside an evaluation's numbers: exact match of each kind of question, bytes on disk, and how
    far Circle is from eager."""
    float_bytes, size = sizes
    table = Table(title="exact match by kind of question", title_justify="left")
    for column in ("", *TASKS, "size on disk"):
        table.add_column(column, justify="right" if column else "left")
    for scores in found.scores:
        shares = []
        for task in TASKS:
            rows = [right for right, q in zip(scores.series["exact"].values, asked, strict=True) if q.task == task]
            shares.append(f"{sum(rows) / len(rows):.1%}" if rows else "")
        weighs = {FLOAT: f"{float_bytes:,} B", CIRCLE: f"{size:,} B ({size / float_bytes:.0%})"}
        table.add_row(scores.subject, *shares, weighs.get(scores.subject, ""))
    console.print(table)
    eager, circle = (found.of(name).series for name in (EAGER, CIRCLE))
    same = [a == b for a, b in zip(eager["exact"].values, circle["exact"].values, strict=True)]
    off = max(abs(a - b) for a, b in zip(eager["nats"].values, circle["nats"].values, strict=True))
    console.print(
        f"Circle against eager: both right or both wrong on {sum(same) / len(same):.2%} of questions, "
        f"log probabilities of answers at most {off:.4f} apart"
    )


def examples(
    session: Session, q: nn.Module, asked: Sequence[Question], batch_size: int, console: Console, family: Family
) -> None:
    """A few questions, and what the bundle answers when nobody forces it."""
    filled = [*asked, *asked[-1:] * (batch_size - len(asked))]
    prompt = family.inputs(filled)
    tokens = session.generate(**prompt, max_new_tokens=MAX_ANSWER, eos_token_id=vlm.EOS)
    eager = q.generate(**prompt, max_new_tokens=MAX_ANSWER, do_sample=False)  # type: ignore[operator]
    same = torch.equal(tokens, eager)
    console.print(f"\ngenerate: tokens of the bundle and of the quantized tree are {'equal' if same else 'NOT equal'}")
    start = prompt["input_ids"].shape[1]
    for question, row in zip(asked[:5], tokens[:, start:].tolist(), strict=False):
        reply = words([token for token in row if token not in (vlm.EOS, TOKEN["<pad>"])])
        console.print(f"  {words(question.prompt)}  ->  {reply}   (right: {words(question.answer[:-1])})", markup=False)


def _graphs(folder: Path) -> list[dict[str, int]]:
    return list(json.loads((folder / "manifest.json").read_text())["graphs"].values())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(FAMILIES), default="qwen3_vl", help="(default: qwen3_vl)")
    parser.add_argument("--recipe", choices=(*RECIPES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the bundle (default: out)")
    parser.add_argument("--limit", type=int, default=96, help="held-out questions to ask (default: 96)")
    parser.add_argument("--calibration", type=int, default=96, help="questions to calibrate on (default: 96)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows that one run of the bundle takes (default: 8)")
    args = parser.parse_args(arguments)
    for name in ("limit", "calibration", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    asked = vlm.heldout_questions(args.limit)
    recipes = RECIPES if args.recipe == "all" else (args.recipe,)
    for recipe in recipes:
        out = args.out if len(recipes) == 1 else args.out / recipe
        out.mkdir(parents=True, exist_ok=True)
        demo(FAMILIES[args.model], recipe, out, asked, args.calibration, args.batch_size, console)


if __name__ == "__main__":
    main()
