# SPDX-License-Identifier: Apache-2.0
"""Profile: the lengths, grids and layout of a bundle of a Qwen3-VL, checked as far as that goes without a model.

It owns what a user asks for. Which graphs that makes of a model, and their manifest, is bundle.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pyquant.decoder.profile import DecoderProfile
from pyquant.errors import ProfileError
from pyquant.models.qwen3_vl.bundle import Qwen3VLParts
from pyquant.models.qwen3_vl.vision_static import VisionProfile


@dataclass(frozen=True)
class Profile(DecoderProfile):
    """A bundle of a whole Qwen3-VL: `pyquant.export_bundle(q, folder, Profile(max_seq_len=512, ...))`.

    As DecoderProfile, and image_grids: (frames, height, width) in patches of every image that may come, one vision
    graph each; none for text alone. A video needs its own grid, or that of one of its frames.

    layers: also "whole", the model before its head in a single graph over max_seq_len tokens and the images of
    image_grids, in order; a host runs it once for each new token.
    """

    image_grids: Any = field(default=(), kw_only=True)
    LAYERS = Literal["stack", "per_layer", "whole"]
    PARTS = Qwen3VLParts

    def __post_init__(self) -> None:
        super().__post_init__()
        grids = VisionProfile(self.image_grids).grids if len(self.image_grids) else ()
        if self.layers != "whole" and len(set(grids)) != len(grids):
            raise ProfileError(f"each of image_grids makes one graph, but one is there twice: {list(grids)}")
        object.__setattr__(self, "image_grids", grids)
