# SPDX-License-Identifier: Apache-2.0
"""Owns what differs between the families that answer questions about digits, for whoever works with either: the demo,
the tests. Leaves the models to `vlm.py` and `gemma4_vlm.py`, the questions to `vlm_data.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from examples.digits import gemma4_vlm, vlm, vlm_data
from examples.digits.vlm import Inputs
from examples.digits.vlm_data import MAX_ANSWER
from pyquant.models import gemma4, qwen3_vl

PROMPT = 40
"""Tokens that the prefill graph takes; the longest prompt has fewer."""


@dataclass(frozen=True)
class Family:
    """A trained model and its conventions: `inputs` makes its batches, `profile` of a batch size the graphs that take
    every question of vlm_data. `checkpoint` is the folder that `load_model` reads.
    """

    checkpoint: Path
    load_model: Callable[[], PreTrainedModel]
    inputs: Inputs
    profile: Callable[[int], Any]


def _qwen3_vl(batch_size: int) -> qwen3_vl.Profile:
    return qwen3_vl.Profile(
        max_seq_len=PROMPT + MAX_ANSWER,
        image_grids=tuple(vlm_data.GRIDS),
        prefill_lengths=(PROMPT,),
        batch_size=batch_size,
        token_embedding="fixed",
    )


def _gemma4(batch_size: int) -> gemma4.Profile:
    return gemma4.Profile(
        max_seq_len=PROMPT + MAX_ANSWER,
        image_shapes=tuple((h, w) for _, h, w in vlm_data.GRIDS),
        prefill_lengths=(PROMPT,),
        batch_size=batch_size,
    )


FAMILIES = {
    "qwen3_vl": Family(vlm.CHECKPOINT, vlm.load_model, vlm_data.inputs, _qwen3_vl),
    "gemma4": Family(gemma4_vlm.CHECKPOINT, gemma4_vlm.load_model, gemma4_vlm.inputs, _gemma4),
}
