# SPDX-License-Identifier: Apache-2.0
"""Images as a processor gives them, as the inputs of static vision graphs: whole grids of patches, line by line.

It owns reading positions: padding anywhere, patches in any order. What a grid means to the tower is vision/tables.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyquant.errors import InputError

Shape = tuple[int, int]
Picture = tuple[Shape, Tensor]  # (height, width) in patches, and the patches line by line
_VIDEO_DIMS = 4


def frames_of(
    pixels: Tensor, positions: Tensor | None, counts: Tensor | None
) -> tuple[Tensor, Tensor | None, list[int] | None]:
    """Frames of all videos in a row, and how many each video has: (frames, P, pixels) as they are, with `counts`
    (videos,); (videos, frames, P, pixels), the form of transformers before 5.19, flattened.

    Raises InputError for counts of other frames.
    """
    if positions is not None and pixels.dim() == _VIDEO_DIMS:
        videos, frames = pixels.shape[:2]
        return pixels.flatten(0, 1), positions.flatten(0, 1), [frames] * videos
    if counts is None:
        return pixels, positions, None
    given: list[int] = counts.tolist()
    if sum(given) != len(pixels):
        raise InputError(
            f"num_frames_per_video is {given}, {sum(given)} frames, but pixel_values_videos has {len(pixels)}"
        )
    return pixels, positions, given


def ordered(pixels: Tensor, positions: Tensor | None, source: str) -> list[Picture]:
    """pixels (N, P, pixels of a patch), positions (N, P, 2) of (x, y), (-1, -1) for padding -> for each image its
    (height, width) in patches, and its patches (height * width, pixels) line by line, float32.

    Raises InputError for images without positions, bytes, and positions that are no whole grid.
    """
    if positions is None or pixels.dim() != 3 or positions.shape != (*pixels.shape[:2], 2):
        raise InputError(
            f"{source} (images, patches, pixels) go with their position ids (images, patches, 2); got "
            f"{tuple(pixels.shape)} and {None if positions is None else tuple(positions.shape)}"
        )
    if not pixels.is_floating_point():
        raise InputError(
            f"{source} are {pixels.dtype}, expected floating point from 0 to 1, as a processor scales them"
        )
    return [_grid(image, at, number, source) for number, (image, at) in enumerate(zip(pixels, positions, strict=True))]


def _grid(image: Tensor, at: Tensor, number: int, source: str) -> tuple[Shape, Tensor]:
    image, at = image.float().cpu(), at.cpu()
    real = ~(at == -1).all(dim=-1)
    if not bool(real.any()):
        raise InputError(f"image {number} of {source} is all padding; leave it out")
    x, y = at[real].long().unbind(dim=-1)
    height, width = int(y.max()) + 1, int(x.max()) + 1
    place = y * width + x
    if len(place) != height * width or len(torch.unique(place)) != len(place) or int(torch.minimum(x, y).min()) < 0:
        raise InputError(
            f"image {number} of {source} has {len(place)} patches at positions up to (x, y) = ({width - 1}, "
            f"{height - 1}), which are no whole grid of {height} x {width}"
        )
    patches = torch.empty(height * width, image.shape[-1], dtype=torch.float32, device="cpu")
    patches[place] = image[real]
    return (height, width), patches


def groups(pictures: Sequence[Picture], frames: int) -> Iterator[tuple[Shape, Tensor]]:
    """Pictures in turn, stacked (n, patches, pixels): as many as `frames` at once where so many of one shape follow
    each other, else one."""
    start = 0
    while start < len(pictures):
        shape = pictures[start][0]
        run = pictures[start : start + frames] if frames > 1 else []
        several = len(run) == frames and all(each == shape for each, _ in run) and frames > 1
        taken = run if several else pictures[start : start + 1]
        yield shape, torch.stack([patches for _, patches in taken])
        start += len(taken)
