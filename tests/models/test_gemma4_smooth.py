# SPDX-License-Identifier: Apache-2.0
"""Smoothing in the forms of Gemma4's text model: experts, shared keys, biases, keys that are values."""

from __future__ import annotations

from typing import Any

import gemma4_text_tiny as tiny
import pytest
import torch

import pyquant
from pyquant.algorithms import smooth
from pyquant.wrap import Phase, phase


@pytest.mark.parametrize("form", ["e2b", "k_eq_v", "experts", "biased"])
@torch.no_grad()
def test_outputs_stay_as_they_are(form: str) -> None:
    fp: Any = tiny.causal_lm(form)
    batch = {"input_ids": torch.arange(18).reshape(2, 9) % tiny.VOCAB}
    expected = fp(**batch).logits
    q: Any = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
    done = smooth(q, [batch], alpha="search")
    with phase(q, Phase.FLOAT):
        out = q(**batch).logits
    assert float((out - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert sum(one.how != "kept" for one in done) > 7
    if form == "experts":
        assert sum(after.endswith("gate_up_proj") for one in done for after in one.after) == 7
