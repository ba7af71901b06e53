# SPDX-License-Identifier: Apache-2.0
"""The likelihood of right answers, token by token behind the right tokens before (teacher forcing).

It owns the counting. An answer is what greedy generation says exactly when each of its tokens is the likeliest behind
the ones before, so that one run gives exact match and likelihood both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pyquant.errors import EvaluationError
from pyquant.evaluation.order import Paired, limited, ordered_pairs, units_of
from pyquant.evaluation.result import Pair, Scores, Settings, TaskResult
from pyquant.evaluation.scores import agreement, kl_divergence, token_losses
from pyquant.evaluation.series import Series
from pyquant.evaluation.subjects import Forced, Subject


@dataclass(frozen=True)
class Likelihood:
    """Batches of questions with their answers' tokens. Units are answers, in the order of the batches; `files_limit`
    counts them, and a batch is run whole."""

    parts: tuple[Forced, ...]
    name: str = "answers"

    def __post_init__(self) -> None:
        if not self.parts:
            raise EvaluationError(f"task {self.name!r} has no question")

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """The prompts, for the check against calibration data."""
        return (part.prompt for part in self.parts)

    def run(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> TaskResult:
        """Series `nats` (nats over answer tokens) and `exact` of each subject; for pairs, agreement and KL."""
        sizes = [len(part.answers) for part in self.parts]
        limits = [units_of(subject, sum(sizes), settings) for subject in subjects]
        weights = tuple(float(len(answer)) for part in self.parts for answer in part.answers)
        nats: list[list[float]] = [[] for _ in subjects]
        exact: list[list[float]] = [[] for _ in subjects]
        pairs = {each: Paired() for each in ordered_pairs(subjects, reference)}
        for index, part in enumerate(tqdm(self.parts, desc=self.name, unit="batch", disable=None)):
            targets = [torch.tensor(answer, dtype=torch.int64, device="cpu") for answer in part.answers]
            logits: dict[int, list[Tensor]] = {}
            for number, subject in enumerate(subjects):
                if sum(sizes[:index]) >= limits[number]:
                    continue
                logits[number] = subject.forced(part)
                for row, right in zip(logits[number], targets, strict=True):
                    nats[number].append(float(token_losses(row, right).sum()))
                    exact[number].append(float(bool((row.argmax(-1) == right).all())))
            for (of, base), found in pairs.items():
                for a, b in zip(logits.get(of, ()), logits.get(base, ()), strict=False):
                    found.kl.append(float(kl_divergence(b, a).sum()))
                    found.agreement.append(float(agreement(b, a).sum()))
        scores = tuple(
            Scores(s.name, s.kind, {"nats": Series(tuple(n), weights[: len(n)]), "exact": Series.of(e)})
            for s, n, e in zip(subjects, nats, exact, strict=True)
        )
        return TaskResult(
            self.name,
            "question",
            "token",
            scores,
            tuple(
                Pair(
                    scores[of].subject,
                    scores[base].subject,
                    {
                        metric: settings.difference(scores[of].series[metric], scores[base].series[metric])
                        for metric in ("nats", "exact")
                    },
                    {
                        "agreement": Series(tuple(found.agreement), weights[: len(found.agreement)]),
                        "kl": Series(tuple(found.kl), weights[: len(found.kl)]),
                    },
                )
                for (of, base), found in pairs.items()
            ),
            notes=limited(subjects, sum(sizes), "question", settings),
        )
