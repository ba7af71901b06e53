# SPDX-License-Identifier: Apache-2.0
"""A whole Gemma4 bundle on the real runtime onert: images, video, audio and text to tokens, against transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant.verify import Session
from tests.models.gemma4_bundle_tiny import for_release, joined, profile, tree

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

NEW = 12  # past the window twice
OPTIONS: dict[str, Any] = {"pad_token_id": 0, "repetition_penalty": 3.0}


class Recorder:
    """The most likely token, and the scores of every step."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, scores: Tensor, tokens: Tensor) -> Tensor:
        self.scores.append(scores)
        return scores.argmax(-1)


@pytest.mark.parametrize(
    ("layers", "names"),
    [pytest.param("stack", ("all", "long"), marks=pytest.mark.slow), ("per_layer", ("image_last",))],
    ids=["stack", "per_layer"],
)
def test_a_float_bundle_generates_what_transformers_does(layers: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Scores of every step within 1e-4 of transformers' own; rows of unequal prompts where there are several."""
    fp, q = tree("float")
    settings = {"batch_size": len(names), "layers": layers, "prefill_lengths": (20,)}
    lean = {} if "all" in names else {"audio_lengths": (), "image_shapes": ((2, 6),)}
    pyquant.export_bundle(q, tmp_path / "out", profile(**settings, **lean), target="onert")
    inputs = joined(list(names), seed=2)
    recorder = Recorder()
    with Session(tmp_path / "out", runtime="onert") as session:
        out = session.generate(**inputs, max_new_tokens=NEW, eos_token_id=[], sampler=recorder, **OPTIONS)
    with torch.no_grad():
        theirs = fp.generate(
            **for_release(inputs),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            **OPTIONS,
        )
    assert torch.equal(out, theirs.sequences)
    for actual, expected in zip(recorder.scores, theirs.scores, strict=True):
        assert float((actual - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
