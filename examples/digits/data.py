# SPDX-License-Identifier: Apache-2.0
"""Owns the digits data: scikit-learn's real handwritten digits, their fixed split, their form as Gemma4 vision inputs.
Leaves the network to `model.py` and the optimisation to `train_classifier.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SPLIT_SEED = 20240
HELDOUT_SIZE = 360
VALIDATION_SIZE = 144
SPLITS = ("train", "validation", "fit", "heldout")


class PatchGrid(Protocol):
    """What `patchify` needs of a model: `image_size` pixels a side, cut in squares of `patch_size`."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...


@dataclass(frozen=True)
class Digits:
    """A set of images (N, 8, 8), float32 in [0, 1] (0 is paper, 1 is ink), and their labels (N,), int64 in 0..9."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.images.shape[1:] != (8, 8) or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"digits want images (N, 8, 8) and labels (N,): {self.images.shape = }, {self.labels.shape = }"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Digits:
        return Digits(self.images[index], self.labels[index])


@cache
def _splits() -> dict[str, Digits]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float() / 16.0
    labels = torch.from_numpy(bunch.target).long()
    order = list(range(len(labels)))
    seeded = {"random_state": SPLIT_SEED, "shuffle": True}
    train, heldout = train_test_split(order, test_size=HELDOUT_SIZE, stratify=labels[order], **seeded)
    fit, validation = train_test_split(train, test_size=VALIDATION_SIZE, stratify=labels[train], **seeded)
    picked = {"train": train, "validation": validation, "fit": fit, "heldout": heldout}
    return {name: Digits(images[rows], labels[rows]) for name, rows in picked.items()}


def load_split(name: str) -> Digits:
    """One fixed, stratified part of the 1797 digits; the same images in the same order on every machine.

    `heldout` (360 images) is never trained on nor selected on. `train` is the other 1437, of which training
    takes gradients from `fit` (1293) and picks its best epoch by `validation` (144).
    """
    splits = _splits()
    if name not in splits:
        raise ValueError(f"no split {name!r} of the digits; there are {', '.join(SPLITS)}")
    part = splits[name]
    return Digits(part.images.clone(), part.labels.clone())


def resample(images: Tensor, size: int, affine: Tensor | None = None) -> Tensor:
    """Bilinear (N, 8, 8) -> (N, size, size).

    `affine` (N, 2, 3), by default the identity, maps output to input coordinates; both run from -1 to 1.
    """
    count = len(images)
    if affine is None:
        affine = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(affine, [count, 1, size, size], align_corners=False)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def random_affine(
    count: int,
    generator: torch.Generator,
    *,
    degrees: float = 12.0,
    scale: float = 0.12,
    shift: float = 0.12,
    shear: float = 0.12,
) -> Tensor:
    """Small random rotations, scalings, shears and shifts as (count, 2, 3), each uniform in +-its bound.

    Coordinates run from -1 to 1, so that a shift of 0.125 is half a pixel of the 8x8 image.
    """

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, sx, sy, lean = uniform(math.radians(degrees)), 1 + uniform(scale), 1 + uniform(scale), uniform(shear)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * sx, (lean * cos - sin) * sy, uniform(shift)], dim=-1)
    row_y = torch.stack([sin * sx, (lean * sin + cos) * sy, uniform(shift)], dim=-1)
    return torch.stack([row_x, row_y], dim=1)


def distorted(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(N, 8, 8) -> (N, size, size), as other hands and pens would have written them: an affine change, a smooth
    displacement of the paper, lighter or darker strokes. Stronger than `random_affine` alone, for a network that could
    learn the 1437 training digits by heart.
    """
    count = len(images)
    affine = random_affine(count, generator, degrees=15.0, scale=0.15, shift=0.1, shear=0.18)
    grid = F.affine_grid(affine, [count, 1, size, size], align_corners=False)
    knots = torch.randn(count, 2, 4, 4, generator=generator) * 0.06
    bent = F.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)
    ink = torch.rand(count, 1, 1, generator=generator) + 0.6
    where = grid + bent.permute(0, 2, 3, 1)
    drawn = F.grid_sample(images[:, None], where, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn[:, 0].clamp(0.0, 1.0) ** ink


def patchify(images: Tensor, config: PatchGrid, affine: Tensor | None = None) -> dict[str, Tensor]:
    """Images (N, 8, 8) in [0, 1] -> the two inputs of a Gemma4 vision model.

    `pixel_values` (N, P, 3 * patch**2), float32 in [0, 1]: the image resampled to image_size, as three equal
    channels, cut in P = (image_size / patch)**2 patches in row-major order, each flattened as (y, x, channel) as HF's
    image processor does. `pixel_position_ids` (N, P, 2), int64: (x, y) of each patch; no padding patches.
    """
    side, patch = config.image_size, config.patch_size
    if images.ndim != 3 or side % patch:
        raise ValueError(f"patchify wants images (N, 8, 8) and whole patches: {images.shape = }, {side = }, {patch = }")
    cells = side // patch
    pixels = resample(images, side, affine).clamp(0.0, 1.0)
    pixels = (
        pixels.view(-1, cells, patch, cells, patch)
        .permute(0, 1, 3, 2, 4)
        .reshape(len(images), cells * cells, patch * patch, 1)
    )
    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    position_ids = torch.stack([x, y], dim=-1).view(1, cells * cells, 2).repeat(len(images), 1, 1)
    return {"pixel_values": pixels.expand(-1, -1, -1, 3).flatten(2), "pixel_position_ids": position_ids}


def batches(digits: Digits, config: PatchGrid, batch_size: int = 32) -> Iterator[dict[str, Tensor]]:
    """The images in order as keyword arguments of `DigitsClassifier.forward`, which is what `calibrate` takes.

    The last batch may be shorter.
    """
    for start in range(0, len(digits), batch_size):
        yield patchify(digits.images[start : start + batch_size], config)
