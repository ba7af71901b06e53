# SPDX-License-Identifier: Apache-2.0
"""A converted Qwen3-VL of two blocks and two layers, its profiles, and its graphs as eager functions.

It owns building, so that the bundle's tests export as little as they can.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from qwen_model_tiny import A, B, C, quantized
from torch import Tensor

from pyquant.models import qwen3_vl
from pyquant.models.qwen3_vl.host import Qwen3VLHost, host
from pyquant.verify.session import _check

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


class Eager:
    """`run` of a bundle without files: each graph is its adapter, called. Inputs are checked as Session does."""

    def __init__(self, q: Any, profile: qwen3_vl.Profile) -> None:
        self.manifest = profile.manifest(q)
        self.adapters = {name: part.as_export_module(own) for name, (part, own) in profile.graphs(q).items()}
        self.seen: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        adapter = self.adapters[name]
        specs = [
            {
                "name": key,
                "shape": list(spec.shape),
                "dtype": str(spec.dtype).removeprefix("torch."),
                "range": self.manifest["graphs"][name].get("range", {}).get(key, [-(2**31), 2**31]),
            }
            | ({"shape_signature": [-1 if a == spec.dynamic else n for a, n in enumerate(spec.shape)]})
            for key, spec in adapter.input_specs.items()
        ]
        _check(name, specs, inputs)
        self.seen[name] = dict(inputs)
        out = adapter(*(inputs[key] for key in adapter.input_specs))
        return dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))

    def host(self) -> Qwen3VLHost:
        return host(self.manifest)
