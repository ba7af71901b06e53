# SPDX-License-Identifier: Apache-2.0
"""VisionProfile: the patches of one static Gemma4 vision graph, their places in the images, and the padding.

It owns what can be checked without a model. What a model precomputes from it is tables.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import ProfileError

PADDING = (-1, -1)
Position = tuple[int, int]


@dataclass(frozen=True)
class VisionProfile:
    """Patch positions of every image of a batch, fixed for good.

    Give either `grid`, (height, width) in patches, or one such pair per image; or `pixel_position_ids`, a tensor or
    nested sequence (batch, patches, 2) of (x, y), with (-1, -1) for padding patches after all others.

    `batch_size` repeats a single grid or a single row of positions. `num_patches` pads every image to that many
    patches, or takes padding away; by default a grid is padded to the largest image, and explicit positions keep the
    padding that they have. `pooling_kernel_size` is only needed to export a pooler by itself: a vision model has its
    own, and must agree when it is given.

    Raises ProfileError for what no model could accept. What contradicts one model is raised when it is exported.
    """

    grid: Any = None
    pixel_position_ids: Any = None
    batch_size: int | None = None
    num_patches: int | None = None
    pooling_kernel_size: int | None = None

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.pixel_position_ids is None):
            raise ProfileError(
                "a VisionProfile needs either grid=(height, width) or pixel_position_ids, and not both; "
                f"got {self.grid = } and {'some' if self.pixel_position_ids is not None else 'no'} pixel_position_ids"
            )
        for name in ("batch_size", "num_patches", "pooling_kernel_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ProfileError(f"{name} is a positive integer or None, got {value!r}")
        given = 0  # explicit positions have a length of their own, padding included
        if self.grid is not None:
            object.__setattr__(self, "grid", _grids(self.grid))
            images = [_row_major(height, width) for height, width in self.grid]
        else:
            images, given = _images(self.pixel_position_ids)
        images = _repeated(images, self.batch_size)
        longest = max(len(image) for image in images)
        patches = max(longest, given) if self.num_patches is None else self.num_patches
        if patches < longest:
            raise ProfileError(f"num_patches={patches} is less than the {longest} patches of the largest image")
        padded = tuple((*image, *[PADDING] * (patches - len(image))) for image in images)
        object.__setattr__(self, "pixel_position_ids", padded)
        object.__setattr__(self, "batch_size", len(padded))
        object.__setattr__(self, "num_patches", patches)

    @property
    def positions(self) -> Tensor:
        """pixel_position_ids as HF takes them: int64 (batch, patches, 2)."""
        return torch.tensor(self.pixel_position_ids, dtype=torch.int64, device="cpu")

    @property
    def shape(self) -> tuple[int, int]:
        """(batch_size, num_patches)."""
        return len(self.pixel_position_ids), len(self.pixel_position_ids[0])

    def check_table(self, size: int) -> None:
        """Raise ProfileError when a position is beyond a position table of `size` entries per axis."""
        for row, image in enumerate(self.pixel_position_ids):
            for number, position in enumerate(image):
                if max(position) >= size:
                    raise ProfileError(
                        f"patch {number} of image {row} is at (x, y) = {position}, but the model's position table "
                        f"ends at {size - 1}; use a smaller grid, or a model with a larger position_embedding_size"
                    )

    def check_kernel(self, kernel: int | None) -> int:
        """The pooling kernel, the model's or this profile's. Raises ProfileError unless the patches fit it."""
        if kernel is None and self.pooling_kernel_size is None:
            raise ProfileError(
                "a pooler has no kernel size of its own; write VisionProfile(..., pooling_kernel_size=K), or export "
                "the whole vision model, which has one"
            )
        if None not in (kernel, self.pooling_kernel_size) and kernel != self.pooling_kernel_size:
            raise ProfileError(
                f"the profile has pooling_kernel_size={self.pooling_kernel_size}, but the model's is {kernel}; "
                "leave it out of the profile"
            )
        k = kernel if kernel is not None else self.pooling_kernel_size
        assert k is not None
        if k < 2:
            raise ProfileError(
                f"pooling_kernel_size {k} does not pool, and transformers itself fails there (it strips the wrong "
                "tokens); use a model with a kernel of at least 2"
            )
        _, patches = self.shape
        if patches % (k * k):
            below = patches - patches % (k * k)
            raise ProfileError(
                f"{patches} patches do not divide into pools of {k} x {k}; set num_patches to {below + k * k} "
                f"(the rest is padding)" + (f" or use {below} patches" if below else "")
            )
        for row, image in enumerate(self.pixel_position_ids):
            width, height = (max(position[axis] for position in image) + 1 for axis in (0, 1))
            if width % k or height % k:
                raise ProfileError(
                    f"image {row} is {height} patches high and {width} wide, which pools of {k} x {k} do not tile; "
                    "resize it so that both sides are multiples of the kernel"
                )
            if (width // k) * (height // k) > patches // (k * k):
                raise ProfileError(
                    f"image {row} reaches to (x, y) = ({width - 1}, {height - 1}), {width // k * (height // k)} pools, "
                    f"but {patches} patches give only {patches // (k * k)}; give every patch of the grid a position"
                )
        return k


def require_vision_profile(profile: Any, module: object) -> None:
    """Raise ProfileError for a profile of another kind, which has no positions."""
    if not isinstance(profile, VisionProfile):
        raise ProfileError(
            f"{type(module).__name__} needs the positions of its patches: export it with gemma4.VisionProfile("
            f"grid=(height, width)), got {type(profile).__name__}"
        )


def _grids(grid: Any) -> tuple[tuple[int, int], ...]:
    pairs = (grid,) if isinstance(grid, Sequence) and grid and hasattr(grid[0], "__index__") else grid
    try:
        result = tuple((_count(height), _count(width)) for height, width in pairs)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"grid is (height, width) in patches, or one such pair per image; got {grid!r}") from error
    if not result or any(side < 1 for pair in result for side in pair):
        raise ProfileError(f"a grid has at least one patch along each side, got {grid!r}")
    return result


def _count(side: Any) -> int:
    if isinstance(side, bool):
        raise TypeError("a truth value is no number of patches")
    return index(side)


def _row_major(height: int, width: int) -> list[Position]:
    return [(x, y) for y in range(height) for x in range(width)]


def _images(ids: Any) -> tuple[list[list[Position]], int]:
    """The valid patches of each image, and the length with padding. Raises ProfileError unless padding is a suffix."""
    try:
        tensor = torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProfileError(f"pixel_position_ids must be (batch, patches, 2) integers: {error}") from error
    if tensor.dim() != 3 or tensor.shape[-1] != 2 or not tensor.numel() or tensor.dtype not in _INTEGERS:
        raise ProfileError(
            f"pixel_position_ids must be integers of shape (batch, patches, 2), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    images = []
    for row, image in enumerate(tensor.tolist()):
        valid = [(x, y) for x, y in image if (x, y) != PADDING]
        for number, (x, y) in enumerate(image):
            if (x, y) == PADDING and number < len(valid):
                raise ProfileError(
                    f"patch {number} of image {row} is padding (-1, -1), but patches follow it; a static graph needs "
                    "the padding after all patches: move it to the end"
                )
            if min(x, y) < 0 and (x, y) != PADDING:
                raise ProfileError(f"patch {number} of image {row} is at ({x}, {y}); only padding (-1, -1) is negative")
        if not valid:
            raise ProfileError(f"image {row} is all padding; a graph needs at least one patch in every image")
        images.append(valid)
    return images, tensor.shape[1]


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _repeated(images: list[list[Position]], batch_size: int | None) -> list[list[Position]]:
    if batch_size is None or batch_size == len(images):
        return images
    if len(images) != 1:
        raise ProfileError(f"the profile has {len(images)} images, but batch_size={batch_size}; leave batch_size out")
    return images * batch_size
