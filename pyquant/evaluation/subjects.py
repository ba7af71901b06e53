# SPDX-License-Identifier: Apache-2.0
"""What is evaluated: a float model, a quantized tree, or the files of a bundle in a runtime, under one set of calls.

It owns how each gives logits of text and of answers, and generates. What is asked of them is the tasks' business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pyquant.decoder.host import Host
from pyquant.errors import EvaluationError
from pyquant.verify import Session
from pyquant.wrap import QModule

Batch = Mapping[str, Tensor]
Kind = Literal["float", "quantized", "files"]


@dataclass(frozen=True)
class Forced:
    """Questions whose right answers are put in place of what the model would say, so that each answer token has logits.

    prompt: the arguments of generate(), without the answers; a bundle takes as many rows as it was exported with, and
        rows beyond the answers are filling. whole: the arguments of one call with the answers, rows padded on the left.
    answers: the token ids of each row.
    """

    prompt: Batch
    whole: Batch
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.answers or any(not answer for answer in self.answers):
            raise EvaluationError("each row of forced answers has at least one token")


class Subject(Protocol):
    """A thing that is evaluated. `takes`: names of the arguments that `generate` knows."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def kind(self) -> Kind:
        """float, quantized (simulated), or files."""

    @property
    def model(self) -> nn.Module | None:
        """The module that transformers' tools take; None for files."""

    def text(self, ids: Tensor) -> Tensor:
        """Logits (S, V) at every place of a text, ids int64 (S,)."""

    def forced(self, asked: Forced) -> list[Tensor]:
        """Logits (answer tokens, V) of each row, each behind the right tokens before it."""

    def generate(self, batch: Batch, **options: Any) -> Tensor:
        """Greedy tokens (B, S + new) of a processor's batch; entries that it does not take are left out."""


@dataclass(frozen=True)
class ModelSubject:
    """A float model of transformers, or a tree that pyquant made of one."""

    name: str
    model: nn.Module
    _takes: frozenset[str] = field(init=False, repr=False)
    _dtype: torch.dtype = field(init=False, repr=False)

    def __post_init__(self) -> None:
        source = self.model.fp_type if isinstance(self.model, QModule) and self.model.fp_type else type(self.model)
        parameters = inspect.signature(source.forward).parameters
        types = (value.dtype for value in self.model.parameters() if value.is_floating_point())
        object.__setattr__(self, "_takes", frozenset(parameters))
        object.__setattr__(self, "_dtype", next(types, torch.float32))

    @property
    def kind(self) -> Kind:
        return "quantized" if isinstance(self.model, QModule) and self.model.state.converted else "float"

    def text(self, ids: Tensor) -> Tensor:
        return self._logits({"input_ids": ids[None]})[0]

    def forced(self, asked: Forced) -> list[Tensor]:
        logits = self._logits(asked.whole)
        return [row[-len(answer) - 1 : -1] for row, answer in zip(logits, asked.answers, strict=True)]

    def generate(self, batch: Batch, **options: Any) -> Tensor:
        model: Any = self.model
        with torch.no_grad():
            tokens: Tensor = model.generate(**self._known(batch), do_sample=False, **options)
        return tokens

    def _logits(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            out = self.model(**self._known(batch))
        logits = getattr(out, "logits", None)
        if not isinstance(logits, Tensor):
            raise EvaluationError(
                f"{self.name}: {type(self.model).__name__} returns no logits; evaluate a model with a head, such as "
                f"...ForCausalLM or ...ForConditionalGeneration"
            )
        return logits

    def _known(self, batch: Batch) -> dict[str, Tensor]:
        known = {name: value for name, value in batch.items() if name in self._takes}
        return {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in known.items()}


@dataclass(frozen=True)
class FilesSubject:
    """The .circle files of a bundle, in the runtime of its Session.

    head: hidden states (B, S, D) before the final norm -> logits (B, S, V). The bundle's own graph takes one place at a
    time; a caller who exported one of more places (decoder.ends.HeadProfile) may give that.
    """

    name: str
    session: Session
    head: Callable[[Tensor], Tensor] | None = None

    @property
    def kind(self) -> Kind:
        return "files"

    @property
    def model(self) -> None:
        return None

    @property
    def rows(self) -> int:
        """Rows that one run of the bundle takes."""
        return self._host.batch

    @property
    def _host(self) -> Host:
        host: Host = self.session.host
        return host

    def text(self, ids: Tensor) -> Tensor:
        rows = ids[None].expand(self.rows, -1)
        if "prefill" in self._host.NEEDS:
            with torch.no_grad():
                return self._through_prefill(rows)
        # The whole model in one graph gives the logits of the last place: one run for each token.
        answer = (*ids[1:].tolist(), 0)
        return self.forced(Forced({"input_ids": rows[:, :1]}, {}, (answer,) * self.rows))[0]

    def _through_prefill(self, ids: Tensor) -> Tensor:
        """What fits goes through prefill (and append) graphs, the rest token by token over the cache."""
        host, run, width = self._host, self.session.run, ids.shape[1]
        start = width if host.append_lengths else min(width, max(host.prefill_lengths))
        turn = host.turn(ids[:, :start], torch.ones_like(ids[:, :start]), None, {"max_new_tokens": width - start + 1})
        hidden = host.prefill(run, turn.prompt(), turn.state)
        if self.head is None:
            logits = [host.logits(run, hidden[:, place, None])[0] for place in range(start)]
        else:
            logits = list(self.head(hidden)[0])
        for place in range(start, width):
            logits.append(host.logits(run, host.decode(run, ids[:, place], turn.state))[0])
        return torch.stack(logits)

    def forced(self, asked: Forced) -> list[Tensor]:
        seen: list[Tensor] = []

        def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            out = self.session.run(name, inputs)
            if self.session.graphs.get(name, {}).get("kind") == "lm_head":
                seen.append(out["logits"][:, 0])  # before penalties of the model's generation config
            return out

        steps, rows = max(map(len, asked.answers)), len(asked.prompt["input_ids"])
        filled = torch.zeros(rows, steps, dtype=torch.int64, device="cpu")
        for row, answer in enumerate(asked.answers):
            filled[row, : len(answer)] = torch.tensor(answer, dtype=torch.int64, device="cpu")

        def right(_: Tensor, tokens: Tensor) -> Tensor:
            return filled[:, tokens.shape[1] - asked.prompt["input_ids"].shape[1]]

        given = self._known(asked.prompt)
        self._host.generate(run, **given, max_new_tokens=steps, eos_token_id=[], sampler=right)
        return [torch.stack([step[row] for step in seen[: len(a)]]) for row, a in enumerate(asked.answers)]

    def generate(self, batch: Batch, **options: Any) -> Tensor:
        count, known = len(batch["input_ids"]), self._known(batch)
        if count != self.rows:
            raise EvaluationError(
                f"{self.name}: the bundle was exported with batch_size={self.rows}, and a question is a batch of "
                f"{count}; export one with batch_size={count}"
            )
        return self.session.generate(**known, do_sample=False, **options)

    def _known(self, batch: Batch) -> dict[str, Any]:
        takes = inspect.signature(self._host.generate).parameters
        return {name: value for name, value in batch.items() if name in takes}


def as_subject(name: str, given: nn.Module | Session | Subject) -> Subject:
    """A model or a Session under a name; a Subject as it is. Raises EvaluationError for anything else."""
    if isinstance(given, nn.Module):
        return ModelSubject(name, given)
    if isinstance(given, Session):
        return FilesSubject(name, given)
    if all(hasattr(given, each) for each in ("name", "kind", "text", "forced", "generate")):
        return given
    raise EvaluationError(
        f"{name!r} is a {type(given).__name__}; expected a model, a quantized tree, or a verify.Session of a bundle"
    )
