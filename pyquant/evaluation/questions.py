# SPDX-License-Identifier: Apache-2.0
"""Questions, with images or without, that each subject answers in words; and how many answers are right.

It owns the lines of a file of questions and the counting. When a text is right is answers.py; turning a question into a
batch is the reader's (calibration/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pyquant import files
from pyquant.calibration import Line, Reader
from pyquant.errors import EvaluationError, PyquantError
from pyquant.evaluation.answers import exact_match, normalized, vqa_accuracy
from pyquant.evaluation.order import limited, ordered_pairs, units_of
from pyquant.evaluation.result import Pair, Scores, Settings, TaskResult
from pyquant.evaluation.series import Series
from pyquant.evaluation.subjects import Subject

KEYS = ("image", "images", "question", "answer", "answers")


@dataclass(frozen=True)
class Question:
    """`load` reads the processor's batch of one question; `answers` are right. `where`: `vqa.jsonl, line 3`."""

    where: str
    load: Callable[[], Mapping[str, Tensor]]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """Questions that are answered by generate(). decode: token ids -> text, without special tokens."""

    questions: tuple[Question, ...]
    decode: Callable[[Sequence[int]], str]
    max_new_tokens: int = 16
    name: str = "questions"

    def __post_init__(self) -> None:
        if not self.questions:
            raise EvaluationError(f"task {self.name!r} has no question")

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """Each question's batch, for the check against calibration data."""
        return (question.load() for question in self.questions)

    def run(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> TaskResult:
        """Series `exact` and `vqa` of each subject; for pairs, agreement: the share of equal normalized answers."""
        counts = [units_of(subject, len(self.questions), settings) for subject in subjects]
        said: list[list[str]] = [[] for _ in subjects]
        for index in tqdm(range(max(counts)), desc=self.name, unit="question", disable=None):
            batch = self.questions[index].load()
            for number, subject in enumerate(subjects):
                if index < counts[number]:
                    said[number].append(self._answer(subject, batch, self.questions[index].where))
        scores = []
        for subject, texts in zip(subjects, said, strict=True):
            rows = list(zip(texts, (question.answers for question in self.questions), strict=False))
            exact = Series.of([exact_match(text, answers) for text, answers in rows])
            vqa = Series.of([vqa_accuracy(text, answers) for text, answers in rows])
            scores.append(Scores(subject.name, subject.kind, {"exact": exact, "vqa": vqa}))
        pairs = []
        for of, base in ordered_pairs(subjects, reference):
            same = [normalized(a) == normalized(b) for a, b in zip(said[of], said[base], strict=False)]
            differences = {
                metric: settings.difference(scores[of].series[metric], scores[base].series[metric])
                for metric in ("exact", "vqa")
            }
            pairs.append(Pair(scores[of].subject, scores[base].subject, differences, {"agreement": Series.of(same)}))
        notes = limited(subjects, len(self.questions), "question", settings)
        return TaskResult(self.name, "question", "question", tuple(scores), tuple(pairs), notes=notes)

    def _answer(self, subject: Subject, batch: Mapping[str, Tensor], where: str) -> str:
        try:
            tokens = subject.generate(batch, max_new_tokens=self.max_new_tokens)
        except PyquantError as error:
            raise EvaluationError(f"{where}: {subject.name}: {error}") from error
        return self.decode(tokens[0, batch["input_ids"].shape[1] :].tolist()).strip()


def read_questions(
    path: str | Path,
    reader: Reader,
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    *,
    limit: int | None = None,
    max_new_tokens: int = 16,
    name: str | None = None,
) -> Questions:
    """Lines {"image": file, "question": text, "answer": text}, or "images": [...], "answers": [...], read by the
    processor of `reader` when they are asked; files are relative to the folder of `path`.

    prepare: a processor's batch -> the model's arguments (models.family.Requests.inputs). limit: the first questions.
    Raises EvaluationError that names the file and the line.
    """
    path = Path(path)
    if reader.tokenizer is None:
        raise EvaluationError(f"{reader.source} has no tokenizer, which questions need; give a folder that has one")
    if not path.is_file():
        raise EvaluationError(
            f"the questions {str(path)!r} do not exist; give a .jsonl file of lines such as {_EXAMPLE}"
        )
    lines = files.json_lines(path, "the questions", EvaluationError)
    found = [_question(data, where, path.parent) for where, data in lines]
    if not found:
        raise EvaluationError(f"{str(path)!r} has no line; write one such as {_EXAMPLE} for each question")
    questions = tuple(Question(line.where, partial(_read, reader, line, prepare), a) for line, a in found[:limit])
    decode = partial(reader.tokenizer.decode, skip_special_tokens=True)
    return Questions(questions, decode, max_new_tokens, f"questions:{path.name}" if name is None else name)


_EXAMPLE = '{"image": "cat.png", "question": "What is this?", "answer": "a cat"}'


def _read(reader: Reader, line: Line, prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    return prepare(reader.read(line))


def _question(data: Any, where: str, folder: Path) -> tuple[Line, tuple[str, ...]]:
    if not isinstance(data, dict):
        raise EvaluationError(f"{where}: a line is an object such as {_EXAMPLE}")
    if unknown := sorted(set(data) - set(KEYS)):
        raise EvaluationError(f"{where}: the key {unknown[0]!r} is not known; a line has {', '.join(KEYS)}")
    question = data.get("question")
    if not isinstance(question, str) or not question.strip():
        raise EvaluationError(f"{where}: 'question' is a text that is not empty")
    answers = _listed(data, "answer", "answers", where)
    if not answers:
        raise EvaluationError(f"{where}: a question has an 'answer', or 'answers' as a list")
    images = tuple(folder / name for name in _listed(data, "image", "images", where))
    if absent := [image for image in images if not image.is_file()]:
        raise EvaluationError(f"{where}: the image {str(absent[0])!r} does not exist")
    return Line(where, question, images), tuple(answers)


def _listed(data: Mapping[str, Any], one: str, several: str, where: str) -> list[str]:
    if data.get(one) is not None and data.get(several) is not None:
        raise EvaluationError(f"{where}: {one!r} and {several!r} mean the same; keep one of them")
    given = data.get(several) if data.get(one) is None else [data[one]]
    found = [] if given is None else given
    if not isinstance(found, list) or any(not isinstance(each, str) or not each.strip() for each in found):
        raise EvaluationError(f"{where}: {one!r} is a text and {several!r} a list of texts, got {given!r}")
    return found
