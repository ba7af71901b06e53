# SPDX-License-Identifier: Apache-2.0
"""Perplexity of text in windows of tokens, and how near each subject's next-token distribution is to another's.

It owns cutting text into windows and counting. Logits of one window of each subject are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyquant import files
from pyquant.errors import EvaluationError
from pyquant.evaluation.order import Paired, limited, ordered_pairs, units_of
from pyquant.evaluation.result import Pair, Scores, Settings, TaskResult
from pyquant.evaluation.scores import agreement, kl_divergence, token_losses
from pyquant.evaluation.series import Series
from pyquant.evaluation.subjects import Subject

SUFFIXES = (".txt", ".md", ".rst", ".text")


@dataclass(frozen=True)
class Perplexity:
    """Windows of token ids, int64 (S,), each by itself: every token but a window's first is predicted.

    Raises EvaluationError for none, and for one of fewer than two tokens.
    """

    windows: tuple[Tensor, ...]
    name: str = "perplexity"

    def __post_init__(self) -> None:
        if not self.windows or any(each.dim() != 1 or len(each) < 2 for each in self.windows):
            raise EvaluationError(f"task {self.name!r}: windows are one or more rows of at least two token ids")

    @classmethod
    def of_text(
        cls, text: str, tokenizer: Any, *, window: int = 256, limit: int | None = None, name: str = "perplexity"
    ) -> Perplexity:
        """A text cut into windows of `window` tokens, one after another; the last may be shorter (two tokens at least).

        A tokenizer that begins every text with a token of its own (Gemma's <bos>) begins each window with it. limit:
        only so many windows, the first.
        """
        first = _beginning(tokenizer)
        if window < 2 + len(first):
            raise EvaluationError(f"a window has at least {2 + len(first)} tokens, got {window}")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0].long()
        pieces = ids.split(window - len(first))[:limit]
        begun = [torch.cat([first, piece]) for piece in pieces]
        kept = tuple(each for each in begun if len(each) > 1)
        if not kept:
            raise EvaluationError(f"task {name!r}: the text has {len(ids)} tokens, and two are needed")
        return cls(kept, name)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Each window as a batch, for the check against calibration data."""
        return ({"input_ids": window[None]} for window in self.windows)

    def run(self, subjects: Sequence[Subject], reference: int, settings: Settings) -> TaskResult:
        """Losses of each window (series `nats`: nats over predicted tokens); for pairs, agreement and KL."""
        counts = [units_of(subject, len(self.windows), settings) for subject in subjects]
        weights = tuple(float(len(window) - 1) for window in self.windows)
        nats: list[list[float]] = [[] for _ in subjects]
        pairs = {each: Paired() for each in ordered_pairs(subjects, reference)}
        bar = tqdm(range(max(counts)), desc=self.name, unit="window", disable=None)
        for index in bar:
            ids = self.windows[index]
            logits: dict[int, Tensor] = {}
            for number, subject in enumerate(subjects):
                if index < counts[number]:
                    logits[number] = _places(subject, ids)
                    nats[number].append(float(token_losses(logits[number], ids[1:]).sum()))
            for (of, base), found in pairs.items():
                if of in logits and base in logits:
                    found.kl.append(float(kl_divergence(logits[base], logits[of]).sum()))
                    found.agreement.append(float(agreement(logits[base], logits[of]).sum()))
        series = [Series(tuple(each), weights[: len(each)]) for each in nats]
        return TaskResult(
            self.name,
            "window",
            "token",
            tuple(Scores(s.name, s.kind, {"nats": each}) for s, each in zip(subjects, series, strict=True)),
            tuple(
                Pair(
                    subjects[of].name,
                    subjects[base].name,
                    {"nats": settings.difference(series[of], series[base])},
                    {
                        "agreement": Series(tuple(found.agreement), weights[: len(found.agreement)]),
                        "kl": Series(tuple(found.kl), weights[: len(found.kl)]),
                    },
                )
                for (of, base), found in pairs.items()
            ),
            notes=limited(subjects, len(self.windows), "window", settings),
        )


def read_text(
    path: str | Path, tokenizer: Any, *, window: int = 256, limit: int | None = None, name: str | None = None
) -> Perplexity:
    """Perplexity of a text file, or of the text files of a folder (those with a suffix of SUFFIXES, by name, joined by
    an empty line). Raises EvaluationError for what is no text."""
    path = Path(path)
    if not path.exists():
        raise EvaluationError(f"the text {str(path)!r} does not exist; give a text file, or a folder of them")
    found = [path]
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
        if not found:
            raise EvaluationError(f"the folder {str(path)!r} has no text file ({', '.join(SUFFIXES)})")
    text = "\n\n".join(files.text(each, "the text", EvaluationError) for each in found)
    return Perplexity.of_text(
        text, tokenizer, window=window, limit=limit, name=f"perplexity:{path.name}" if name is None else name
    )


def _beginning(tokenizer: Any) -> Tensor:
    """The token that a tokenizer puts before every text, int64 (1,), or none (0,)."""
    ids = list(tokenizer("a")["input_ids"])
    bos = getattr(tokenizer, "bos_token_id", None)
    first = ids[:1] if bos is not None and len(ids) > 1 and ids[0] == bos else []
    return torch.tensor(first, dtype=torch.int64, device="cpu")


def _places(subject: Subject, ids: Tensor) -> Tensor:
    """Logits (S - 1, V) of the tokens that are predicted."""
    logits = subject.text(ids)
    if logits.dim() != 2 or len(logits) != len(ids):
        raise EvaluationError(
            f"{subject.name}: {len(ids)} tokens gave logits {tuple(logits.shape)}; expected one row for each token"
        )
    return logits[:-1]
