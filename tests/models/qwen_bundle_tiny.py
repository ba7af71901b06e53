# SPDX-License-Identifier: Apache-2.0
"""A converted Qwen3-VL of two blocks and two layers, its profiles, and its graphs as eager functions.

It owns building, so that the bundle's tests export as little as they can.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from qwen_model_tiny import A, B, C, quantized

from pyquant.models import qwen3_vl
from pyquant.models.qwen3_vl.host import Qwen3VLHost, host
from tests.models.eager_bundle import Eager as EagerBundle

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "vision_config": {"depth": 2, "deepstack_visual_indexes": [1, 0]}}
GRIDS = (A, B, C, (1, 4, 2))
PROMPTS: dict[str, tuple[Any, ...]] = {
    "text": (6,),
    "image_first": (C, 2),
    "image_last": (3, A),
    "adjacent": (1, A, C, B, 2),
    "apart": (C, 3, B, 1),
    "video": (2, ("video", (2, 4, 2)), 1),
    "image_and_video": (1, C, ("video", (2, 4, 2)), 1),
}


@cache
def tree(policy: str = "w8a16") -> tuple[Any, Any]:
    """(float model, converted tree); shared by all tests of a process, and changed by none."""
    return quantized(policy, **SMALL)


def profile(**changes: Any) -> qwen3_vl.Profile:
    return qwen3_vl.Profile(**{"max_seq_len": 28, "image_grids": GRIDS, "prefill_lengths": (8, 24), **changes})


class Eager(EagerBundle):
    """The graphs of a profile, and their host."""

    def host(self) -> Qwen3VLHost:
        return host(self.manifest)
