# SPDX-License-Identifier: Apache-2.0
"""AudioProfile: the length of one static Gemma4 audio graph; and a clip as the inputs of such a graph.

It owns what can be checked without a model. What a model precomputes from it is in its wrapper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.errors import InputError, ProfileError

FRAMES_PER_TOKEN = 4  # two convolutions of stride 2


@dataclass(frozen=True)
class AudioProfile:
    """`length` frames (of 10 ms: 3000 are 30 s) of each of `batch_size` clips, fixed for good.

    A graph of this length takes every clip that is not longer: the host pads input_features with anything (zeros), and
    attention_mask (1.0 for a frame of the clip, 0.0 for padding) says where the clip ends; `clip_inputs` does both. The
    first `tokens_of(frames)` soft tokens are the clip's, the same as without padding; the others mean nothing. So a
    bundle needs a few lengths, not one for every clip. Raises ProfileError for a number that is not positive.
    """

    length: int
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("length", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} is a positive integer, got {value!r}")

    @property
    def tokens(self) -> int:
        """Soft tokens of each clip."""
        return tokens_of(self.length)

    @property
    def name(self) -> str:
        """The name of the graph: `audio_t3000`."""
        return f"audio_t{self.length}"


def tokens_of(frames: int) -> int:
    """Soft tokens of a clip of `frames` frames."""
    return -(-frames // FRAMES_PER_TOKEN)


def clip_inputs(profile: AudioProfile, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """A batch of clips as the inputs of the graph of `profile`, padded.

    features: (batch, frames, mel bins); mask: (batch, frames), true for a frame of a clip, as transformers' feature
    extractor gives both (None: no clip has padding). Frames that are padding in every clip may be beyond the graph's
    length. Returns input_features (batch_size, length, mel bins) and attention_mask (batch_size, length), float32.
    Raises InputError for another batch size, and a clip that is too long.
    """
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if features.dim() != 3 or mask.shape != features.shape[:2]:
        raise InputError(
            f"features are (batch, frames, mel bins) and their mask (batch, frames), got {tuple(features.shape)} and "
            f"{tuple(mask.shape)}"
        )
    used = mask.bool().any(dim=0).nonzero()
    frames = int(used.max()) + 1 if len(used) else 0
    if frames > profile.length or len(features) != profile.batch_size:
        raise InputError(
            f"{len(features)} clips, the longest of {frames} frames, do not fit {profile}: take the graph of a longer "
            "length, or cut the clips"
        )
    missing = profile.length - frames
    return {
        "input_features": F.pad(features[:, :frames].float(), (0, 0, 0, missing)),
        "attention_mask": F.pad(mask[:, :frames].bool().float(), (0, missing)),
    }


def require_audio_profile(profile: Any, module: object) -> None:
    """Raise ProfileError for a profile of another kind, which has no length."""
    if not isinstance(profile, AudioProfile):
        raise ProfileError(
            f"{type(module).__name__} needs the length of its clips: export it with gemma4.AudioProfile(length), got "
            f"{type(profile).__name__}"
        )
