# SPDX-License-Identifier: Apache-2.0
"""A converted whole Gemma4 of four text layers, its prompts and profiles, and its graphs as eager functions.

It owns building, so that the bundle's tests export as little as they can.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import pyquant
from pyquant.models import gemma4
from tests.models.gemma4_model_tiny import MEL, batch, conditional, pixels
from tests.models.gemma4_text_tiny import F, S

A, B, FRAME = (4, 4), (2, 6), (2, 4)  # patches; 4, 3 and 2 soft tokens
IMAGE_A, IMAGE_B = ("image", 4), ("image", 3)
SHORT = {"num_hidden_layers": 4, "layer_types": [S, F, S, F], "num_kv_shared_layers": 2}
#: name -> (parts of a row, shapes of images, frames of the video, frames of clips)
PROMPTS: dict[str, tuple[list[Any], list[tuple[int, int]], int, list[int]]] = {
    "short": ([3], [], 0, []),
    "window": ([5], [], 0, []),
    "long": ([17], [], 0, []),
    "image_first": ([IMAGE_A, 3], [A], 0, []),
    "image_last": ([2, IMAGE_B], [B], 0, []),
    "adjacent": ([1, IMAGE_A, IMAGE_B, 2], [A, B], 0, []),
    "video": ([2, ("video", 6), 1], [], 3, []),
    "audio": ([2, ("audio", 4), 2], [], 0, [14]),
    "all": ([1, IMAGE_B, 1, ("video", 4), ("audio", 2), 1, IMAGE_A, ("audio", 3), 1], [B, A], 2, [7, 10]),
}


def given(name: str, seed: int = 0) -> dict[str, Tensor]:
    """One prompt, as transformers' processor makes it."""
    return joined([name], seed)


def joined(names: list[str], seed: int = 0, side: str = "left") -> dict[str, Tensor]:
    """Several prompts as one batch: their images, frames and clips in turn."""
    made = [PROMPTS[name] for name in names]
    out = batch([parts for parts, *_ in made], side=side, seed=seed)
    shapes = [shape for _, images, _, _ in made for shape in images]
    if shapes:
        out["pixel_values"], out["image_position_ids"] = pixels(shapes, seed)
    frames = [count for _, _, count, _ in made if count]
    if frames:
        out["pixel_values_videos"], out["video_position_ids"] = pixels([FRAME] * sum(frames), seed + 1)
        out["num_frames_per_video"] = torch.tensor(frames)
    clips = [count for *_, clips in made for count in clips]
    if clips:
        generator = torch.Generator().manual_seed(seed)
        out["input_features"] = torch.randn(len(clips), max(clips), MEL, generator=generator)
        out["input_features_mask"] = torch.arange(max(clips))[None] < torch.tensor(clips)[:, None]
    return out


@cache
def tree(policy: str = "w8a16", form: str = "e2b") -> tuple[Any, Any]:
    """(float model, converted tree); shared by all tests of a process, and changed by none."""
    fp = conditional(form, audio=True, **SHORT)
    q = pyquant.prepare(fp, pyquant.Policy.preset(policy))
    data = [given(name, seed) for seed in (1, 2) for name in ("long", "adjacent", "video", "audio", "all")]
    pyquant.calibrate(q, [for_release(each) for each in data], progress=False)
    pyquant.convert(q)
    return fp, q


def for_release(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frames as transformers before 5.19 takes them: (videos, frames, ...)."""
    if "num_frames_per_video" not in inputs or gemma4.hf.home.takes("Gemma4Model", "num_frames_per_video"):
        return inputs
    inputs = dict(inputs)
    count = int(inputs.pop("num_frames_per_video")[0])
    for name in ("pixel_values_videos", "video_position_ids"):
        inputs[name] = inputs[name].unflatten(0, (-1, count))
    return inputs


def profile(**changes: Any) -> gemma4.Profile:
    settings = {
        "max_seq_len": 40,
        "image_shapes": (A, B, FRAME),
        "audio_lengths": (8, 16),
        "prefill_lengths": (8, 24),
        **changes,
    }
    return gemma4.Profile(**settings)
