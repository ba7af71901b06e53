# SPDX-License-Identifier: Apache-2.0
"""What the logits of one stretch of text say: the loss of each token, KL divergence and agreement with other logits.

It owns the formulas, in float64 and some rows at a time, so that they need little memory beside the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyquant.errors import EvaluationError

_ROWS = 1 << 21  # float64 numbers of a piece: 16 MB


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each place, in nats: logits (S, V), targets int (S,) -> float64 (S,).

    Raises EvaluationError for shapes that do not fit.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise EvaluationError(
            f"losses are of logits (S, V) and targets (S,), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    found = [
        part.logsumexp(-1) - part.gather(-1, targets[rows, None].to(torch.int64))[:, 0]
        for rows, (part,) in _pieces(logits)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=logits.device)


def kl_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """sum p (log p - log q) of each place, in nats: p, q are softmax of `reference` and `other` (S, V) -> float64 (S,).

    A token that the reference excludes (a logit of -inf) adds nothing. Raises EvaluationError for unequal shapes.
    """
    found = []
    for _, (first, second) in _pieces(reference, other):
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
        found.append(terms.sum(-1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=reference.device)


def agreement(reference: Tensor, other: Tensor) -> Tensor:
    """Whether the likeliest token is the same at each place: (S, V) -> bool (S,). Raises EvaluationError for unequal
    shapes."""
    _require_same(reference, other)
    return reference.argmax(-1) == other.argmax(-1)


def _pieces(*logits: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    for each in logits[1:]:
        _require_same(logits[0], each)
    step = max(1, _ROWS // max(1, logits[0].shape[1]))
    for start in range(0, len(logits[0]), step):
        rows = slice(start, start + step)
        yield rows, [each[rows].double() for each in logits]


def _require_same(reference: Tensor, other: Tensor) -> None:
    if reference.shape != other.shape or reference.dim() != 2:
        raise EvaluationError(
            f"models are compared by logits (S, V) of the same tokens, got {tuple(reference.shape)} and "
            f"{tuple(other.shape)}; do they have the same vocabulary?"
        )
