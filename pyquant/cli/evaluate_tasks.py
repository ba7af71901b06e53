# SPDX-License-Identifier: Apache-2.0
"""The tasks of `pyquant evaluate`, from their names; the tokenizer that reads them; what subjects were calibrated on.

It owns the syntax of --tasks. What a task measures is pyquant.evaluation.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.cli.evaluate_subjects import FLOAT, Chosen
from pyquant.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from pyquant.calibration import Fingerprint, Reader
    from pyquant.evaluation import LmEval, Task

KINDS = ("perplexity", "questions", "lm-eval", "throughput")
PROMPT = "A prompt whose length matters and whose meaning does not. "


@dataclass(frozen=True)
class Plan:
    """One word of --tasks: its kind and what follows the colon."""

    kind: str
    rest: str

    @property
    def checked(self) -> bool:
        """Whether its samples are checked against calibration data."""
        return self.kind in ("perplexity", "questions")


def plan(words: Sequence[str]) -> list[Plan]:
    """Raises UsageError for a word that is no task, or for one given twice."""
    found = []
    for word in words:
        kind, _, rest = word.partition(":")
        if kind not in KINDS or (not rest and kind != "throughput"):
            raise UsageError(
                f"--tasks {word}: expected perplexity:FILE_OR_FOLDER, questions:FILE.jsonl, lm-eval:NAME[,NAME], "
                f"throughput or throughput:IN,OUT"
            )
        found.append(Plan(kind, rest))
    if len(set(found)) < len(found):
        raise UsageError(f"a task is given twice: {' '.join(words)}")
    return found


def reader_of(args: argparse.Namespace, chosen: Sequence[Chosen], plans: Sequence[Plan]) -> Reader:
    """The tokenizer and processor of --tokenizer, or of the first subject that has one. Raises UsageError."""
    from pyquant.calibration import Reader, load_reader
    from pyquant.cli import gguf

    folders = [Path(args.tokenizer)] if args.tokenizer else [f for each in chosen for f in each.folders]
    whys = []
    for folder in folders:
        try:
            if file := gguf.file_of(str(folder), args.gguf_file if folder == _float(chosen) else None):
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
                return Reader(str(folder), tokenizer=tokenizer, why_no_images="a .gguf file has none")
            reader = load_reader(folder)
        except CalibrationError as error:
            whys.append(str(error))
            continue
        if reader.tokenizer is not None:
            return reader
    names = [each.source for each in chosen if not each.folders]
    if names and not args.tokenizer:
        return load_reader(names[0])
    raise UsageError(
        f"no tokenizer is beside {' or '.join(each.source for each in chosen)}, and tasks need one; name its folder: "
        f"--tokenizer DIR{f' ({whys[0]})' if whys else ''}"
    )


def _float(chosen: Sequence[Chosen]) -> Path | None:
    return next((Path(each.source) for each in chosen if each.kind == FLOAT), None)


def task(args: argparse.Namespace, given: Plan, reader: Reader, subjects: Mapping[str, Any]) -> Task | LmEval:
    """The task of a word, its data read."""
    from pyquant import evaluation

    if given.kind == "perplexity":
        return evaluation.read_text(given.rest, reader.tokenizer, window=args.window, limit=args.limit)
    if given.kind == "questions":
        prepare = _prepare(subjects)
        return evaluation.read_questions(
            given.rest, reader, prepare, limit=args.limit, max_new_tokens=args.max_new_tokens
        )
    if given.kind == "lm-eval":
        names = tuple(name for name in given.rest.split(",") if name)
        return evaluation.LmEval(names, reader.tokenizer, args.lm_eval_tasks, args.limit)
    return _throughput(given.rest, reader)


def _throughput(rest: str, reader: Reader) -> Task:
    import torch

    from pyquant import evaluation

    numbers = rest.split(",") if rest else ["64", "16"]
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise UsageError(f"--tasks throughput:{rest}: expected throughput:IN,OUT in tokens, such as throughput:64,16")
    width, new = map(int, numbers)
    ids = list(reader.tokenizer(PROMPT * width)["input_ids"])[:width]
    return evaluation.Throughput(torch.tensor(ids, dtype=torch.int64, device="cpu"), new)


def _prepare(subjects: Mapping[str, Any]) -> Any:
    """A processor's batch as the arguments of the subjects' family."""
    from pyquant import models
    from pyquant.verify import Session
    from pyquant.wrap import QModule

    first = next(iter(subjects.values()))
    if isinstance(first, Session):
        return models.by_name(str(first.manifest["family"])).requests.inputs
    kind = first.fp_type if isinstance(first, QModule) else None
    return models.family_of(kind or type(first)).requests.inputs


def calibration(
    args: argparse.Namespace, chosen: Sequence[Chosen], reader: Reader, subjects: Mapping[str, Any]
) -> Fingerprint | None:
    """What is recorded beside the subjects, and the samples of --calibration; None where there is neither."""
    from pyquant.calibration import Fingerprint, fingerprint, read

    recorded = [Fingerprint.load(folder) for each in chosen if each.kind != FLOAT for folder in each.folders]
    found = [each for each in recorded if each is not None]
    for file in args.calibration:
        prepare = _prepare(subjects)
        batches: list[Mapping[str, Tensor]] = list(read(file, reader).map(prepare))
        found.append(fingerprint(batches))
    if not found:
        return None
    whole = found[0]
    for each in found[1:]:
        whole = whole | each
    return whole
