# SPDX-License-Identifier: Apache-2.0
"""How many tokens a second each subject takes in (prefill) and gives (decode).

It owns the clock. The numbers are of this machine; a reference runtime says nothing about a device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import EvaluationError
from pyquant.evaluation.result import Scores, Settings, TaskResult
from pyquant.evaluation.subjects import FilesSubject, Subject


@dataclass(frozen=True)
class Throughput:
    """A prompt (S,) and so many tokens behind it, greedy, `repeats` times after one run that is not counted. Raises
    EvaluationError for fewer than two new tokens: decoding is timed between tokens."""

    prompt: Tensor
    new_tokens: int = 16
    repeats: int = 3
    name: str = "throughput"

    def __post_init__(self) -> None:
        if self.new_tokens < 2 or self.repeats < 1 or self.prompt.dim() != 1 or not len(self.prompt):
            raise EvaluationError(
                f"throughput wants a prompt of tokens (S,), 2 new tokens or more and a repeat; got "
                f"{tuple(self.prompt.shape)}, {self.new_tokens} and {self.repeats}"
            )

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """Nothing that could overlap."""
        return iter(())

    def run(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> TaskResult:
        """Facts `prefill` and `decode` of each subject: tokens a second, the median of the repeats. Subjects take
        turns, so that what the machine does meanwhile meets all; files in a reference runtime have one turn."""
        turns: list[list[tuple[float, float]]] = [[] for _ in subjects]
        for turn in range(1 + self.repeats):
            for subject, seen in zip(subjects, turns, strict=True):
                if not (turn and _slow(subject)):
                    seen.append(self._once(subject, _rows(subject)))
        scores = []
        for subject, seen in zip(subjects, turns, strict=True):
            counted, rows = seen if _slow(subject) else seen[1:], _rows(subject)
            facts = {
                "prefill": rows * len(self.prompt) / statistics.median(first for first, _ in counted),
                "decode": rows / statistics.median(step for _, step in counted),
            }
            scores.append(Scores(subject.name, subject.kind, {}, facts))
        notes = [f"{len(self.prompt)} tokens in, {self.new_tokens} out"]
        if any(subject.kind == "files" for subject in subjects):
            notes.append("files ran in a runtime on this machine: not the speed of a device")
        if any(map(_slow, subjects)):
            notes.append("files in a reference runtime ran once")
        return TaskResult(self.name, "run", "token", tuple(scores), notes=tuple(notes))

    def _once(self, subject: Subject, rows: int) -> tuple[float, float]:
        """Seconds until the first token, and from one token to the next."""
        clock = _clock()
        began = time.perf_counter()
        ids = self.prompt[None].expand(rows, -1)
        subject.generate(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            max_new_tokens=self.new_tokens,
            min_new_tokens=self.new_tokens,
            stopping_criteria=_criteria(clock),
        )
        if len(clock.times) < 2:
            raise EvaluationError(f"{subject.name} gave {len(clock.times)} of {self.new_tokens} tokens")
        return clock.times[0] - began, (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)


def _rows(subject: Subject) -> int:
    return subject.rows if isinstance(subject, FilesSubject) else 1


def _slow(subject: Subject) -> bool:
    """A reference runtime, with nothing to warm up but its files."""
    return isinstance(subject, FilesSubject) and subject.session.runtime != "native"


def _clock() -> Any:
    """A stopping criterion that stops nothing and notes when each token came."""
    from transformers import StoppingCriteria

    class Clock(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return Clock()


def _criteria(clock: Any) -> Any:
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([clock])
