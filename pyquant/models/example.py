# SPDX-License-Identifier: Apache-2.0
"""What the examples of families share: an image that is made up, plain resizing, random weights.

It owns nothing of a family. A family's own example is `example.py` in its folder; see family.Example.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError

CHANNELS = 3


def made_up_image(height: int = 32, width: int = 32) -> Tensor:
    """uint8 (height, width, 3): a gradient, a disc and some noise; the same each time."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height, dtype=torch.float32, device="cpu"),
        torch.linspace(0, 1, width, dtype=torch.float32, device="cpu"),
        indexing="ij",
    )
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.06).float()
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    return (torch.stack([x, 0.7 * y + 0.3 * disc, 0.5 * disc + 0.2 * noise], dim=-1) * 255).to(torch.uint8)


def resized(image: Any, height: int, width: int) -> Tensor:
    """float32 (3, height, width) in [0, 1], bilinear, whatever the aspect was. Raises InputError for another form."""
    pixels = torch.as_tensor(image, device="cpu")
    if pixels.dim() == 3 and pixels.shape[0] == CHANNELS != pixels.shape[-1]:
        pixels = pixels.permute(1, 2, 0)
    if pixels.dim() != 3 or pixels.shape[-1] != CHANNELS or not pixels.numel():
        raise InputError(
            f"an image is (height, width, {CHANNELS}) or ({CHANNELS}, height, width), got {tuple(pixels.shape)}"
        )
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    planes = pixels.permute(2, 0, 1)[None]
    planes = nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return planes[0].clamp(0, 1)


@torch.no_grad()
def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, in place, so that nothing is left at one or zero: matrices of variance 1 / fan_in,
    gains near 1, biases and tables near 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
        if parameter.dim() == 1:
            parameter.copy_(0.2 * noise if name.endswith("bias") else 1 + 0.2 * noise)
        elif "embed" in name and "proj" not in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model


PROMPT = b"What is this?"


def byte_ids(size: int, ids: Sequence[int] | None, special: Collection[int] = ()) -> list[int]:
    """`ids`, or those of a made-up prompt: PROMPT's bytes, wrapped around where a vocabulary of `size` is smaller than
    the bytes, without `special` ones. Raises InputError for no ids, and for one beyond the vocabulary."""
    if ids is None:
        plain = [each for each in range(min(size, 256)) if each not in special]
        return [plain[byte % len(plain)] for byte in PROMPT]
    bad = [each for each in ids if not 0 <= each < size]
    if bad or not len(ids):
        raise InputError(f"ids are 0 to {size - 1}, got {bad[0] if bad else 'none'}")
    return list(ids)
