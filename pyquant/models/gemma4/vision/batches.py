# SPDX-License-Identifier: Apache-2.0
"""Images as the inputs of a Gemma4 vision model, for calibration and for running an exported graph.

It owns cutting into patches and padding. Resizing an image to whole pools is HF's image processor's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import InputError

CHANNELS = 3


def patchify(image: Any, patch_size: int, pooling_kernel_size: int = 1) -> tuple[Tensor, Tensor]:
    """One image -> patches (P, 3 * patch_size**2), float32 in [0, 1], and their (x, y), int64 (P, 2), row by row.

    `image` is an array or tensor (H, W, 3) or (3, H, W); uint8 from 0 to 255, or floating point from 0 to 1. Each patch
    is flattened as (y, x, channel). Raises InputError for another form, or sides that are not whole pools.
    """
    pixels = torch.as_tensor(image, device="cpu")
    if pixels.dim() == 3 and pixels.shape[-1] != CHANNELS and pixels.shape[0] == CHANNELS:
        pixels = pixels.permute(1, 2, 0)
    if pixels.dim() != 3 or pixels.shape[-1] != CHANNELS:
        raise InputError(
            f"an image is (height, width, {CHANNELS}) or ({CHANNELS}, height, width), got {tuple(pixels.shape)}"
        )
    height, width, _ = pixels.shape
    unit = patch_size * pooling_kernel_size
    if height % unit or width % unit:
        raise InputError(
            f"the image is {height} x {width} pixels, but its sides must be multiples of {unit} (patch_size "
            f"{patch_size} * pooling_kernel_size {pooling_kernel_size}); resize it with transformers' image processor"
        )
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    elif not pixels.is_floating_point():
        raise InputError(f"an image is uint8 from 0 to 255 or floating point from 0 to 1, got {pixels.dtype}")
    rows, columns = height // patch_size, width // patch_size
    patches = pixels.float().reshape(rows, patch_size, columns, patch_size, CHANNELS).permute(0, 2, 1, 3, 4)
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.int64, device="cpu"),
        torch.arange(columns, dtype=torch.int64, device="cpu"),
        indexing="ij",
    )
    return patches.reshape(rows * columns, -1), torch.stack([x, y], dim=-1).reshape(-1, 2)


def image_batches(
    images: Iterable[Any],
    *,
    patch_size: int,
    pooling_kernel_size: int,
    batch_size: int = 1,
    num_patches: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Images -> dicts of pixel_values (B, P, 3 * patch_size**2) and pixel_position_ids (B, P, 2), for `calibrate`.

    Within a batch every image is padded (pixels 0, positions -1) to `num_patches`, by default to the largest image.
    Padding patches run through the layers and are seen by the observers, so calibrate with as little as possible: one
    image at a time, or images of one size. Raises InputError for an image with more than `num_patches`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is a positive integer, got {batch_size}")
    pending: list[tuple[Tensor, Tensor]] = []
    for number, image in enumerate(images):
        patches, positions = patchify(image, patch_size, pooling_kernel_size)
        if num_patches is not None and len(patches) > num_patches:
            raise InputError(
                f"image {number} has {len(patches)} patches, more than num_patches={num_patches}; resize it"
            )
        pending.append((patches, positions))
        if len(pending) == batch_size:
            yield _padded(pending, num_patches)
            pending = []
    if pending:
        yield _padded(pending, num_patches)


def _padded(images: list[tuple[Tensor, Tensor]], num_patches: int | None) -> dict[str, Tensor]:
    length = max(len(patches) for patches, _ in images) if num_patches is None else num_patches
    pixels = images[0][0].new_zeros(len(images), length, images[0][0].shape[-1])
    positions = torch.full((len(images), length, 2), -1, dtype=torch.int64, device="cpu")
    for row, (patches, xy) in enumerate(images):
        pixels[row, : len(patches)] = patches
        positions[row, : len(xy)] = xy
    return {"pixel_values": pixels, "pixel_position_ids": positions}
