# SPDX-License-Identifier: Apache-2.0
"""Losses, KL and agreement against torch, scipy and the loss of transformers' own model."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from pyquant.errors import EvaluationError
from pyquant.evaluation import agreement, kl_divergence, token_losses
from pyquant.evaluation import scores as module
from pyquant.models import by_name

DRAW = torch.Generator().manual_seed(1)


def logits(*shape: int, scale: float = 5.0) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW) * scale


def test_losses_are_those_of_transformers() -> None:
    model = by_name("llama").example.tiny_model()
    ids = torch.randint(0, 256, (1, 40), generator=DRAW)
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    found = token_losses(out.logits[0, :-1], ids[0, 1:])
    assert found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(float(out.loss), rel=1e-5)


def test_losses_are_those_of_scipy_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = logits(23, 50, scale=40), torch.randint(0, 50, (23,), generator=DRAW)
    expected = -scipy.special.log_softmax(scores.double().numpy(), axis=1)[np.arange(23), targets.numpy()]
    whole = token_losses(scores, targets)
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-12, atol=1e-13)
    monkeypatch.setattr(module, "_ROWS", 150)
    assert torch.equal(token_losses(scores, targets), whole)


def test_kl_is_scipys_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = logits(9, 31), logits(9, 31)
    expected = [
        scipy.stats.entropy(scipy.special.softmax(a), scipy.special.softmax(b))
        for a, b in zip(p.double().numpy(), q.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-10)
    assert float(kl_divergence(p, p).abs().max()) == 0
    monkeypatch.setattr(module, "_ROWS", 62)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-10)


def test_a_token_that_the_reference_excludes_adds_nothing() -> None:
    p, q = logits(1, 8), logits(1, 8)
    p[0, 3] = -torch.inf
    kept = [0, 1, 2, 4, 5, 6, 7]
    log_q = q.double().log_softmax(-1)[0, kept]
    log_p = p[:, kept].double().log_softmax(-1)[0]
    assert float(kl_divergence(p, q)) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-12)
    assert float(kl_divergence(q, p)) == torch.inf


def test_agreement_is_that_of_the_likeliest_tokens() -> None:
    p = torch.tensor([[1.0, 3, 2], [5, 0, 1], [0, 0, 9]])
    q = torch.tensor([[0.0, 1, 0], [0, 5, 1], [1, 1, 2]])
    assert agreement(p, q).tolist() == [True, False, True]


def test_logits_of_other_shapes_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"\(2, 5\) and \(2, 6\); do they have the same vocabulary"):
        kl_divergence(logits(2, 5), logits(2, 6))
    with pytest.raises(EvaluationError, match="same vocabulary"):
        agreement(logits(2, 5), logits(3, 5))
    with pytest.raises(EvaluationError, match=r"targets \(S,\), got \(2, 5\) and \(3,\)"):
        token_losses(logits(2, 5), torch.zeros(3, dtype=torch.int64))
