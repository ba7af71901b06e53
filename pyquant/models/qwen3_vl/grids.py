# SPDX-License-Identifier: Apache-2.0
"""What a grid of patches (frames, height, width) means to Qwen3-VL's vision tower, for eager use and for export.

It owns the order of patches, their positions, interpolated position embeddings and attention segments, as pure
functions. Rotary tables come from HF's own module (tower.py); a profile's tensors are kept by vision_static.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import index
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import InputError

#: (frames, height, width) of an image (one frame) or a video, counted in patches.
Grid = tuple[int, int, int]

# How many attention logits of equal segments exist at once: 256 MiB in float32. A long video is computed in parts.
_LOGITS = 2**26


def grids_of(grid_thw: Any, merge: int, rows: int | None = None) -> tuple[Grid, ...]:
    """grid_thw, integers (images and videos, 3), as numbers. `merge`: spatial_merge_size. `rows`: the pixel rows given.

    Raises InputError for another form, a side below 1 or that does not divide by `merge`, or another number of patches.
    """
    given = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
    try:
        grids = tuple((count_of(t), count_of(h), count_of(w)) for t, h, w in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            "grid_thw is (images and videos, 3) integers: frames, height and width in patches; got "
            f"{_form(grid_thw)} ({error})"
        ) from error
    if not grids:
        raise InputError("grid_thw has no rows; a vision model needs at least one image or video")
    for number, grid in enumerate(grids):
        if fault := fault_of(grid, merge):
            raise InputError(f"row {number} of grid_thw is {grid}, but {fault}")
    patches = sum(t * h * w for t, h, w in grids)
    if rows is not None and patches != rows:
        raise InputError(
            f"pixel_values have {rows} rows, but grid_thw {list(grids)} has {patches} patches; give one row per "
            "patch, of all images in turn"
        )
    return grids


def fault_of(grid: Grid, merge: int) -> str:
    """What is wrong with a grid for a model that merges `merge` x `merge` patches; empty when nothing is."""
    if min(grid) < 1:
        return "frames, height and width are at least 1"
    if grid[1] % merge or grid[2] % merge:
        return (
            f"height and width must be multiples of spatial_merge_size {merge}; resize the image with transformers' "
            "image processor"
        )
    return ""


def count_of(value: Any) -> int:
    """An integer of any kind as int. Raises TypeError for another number, and for a truth value."""
    if isinstance(value, bool):
        raise TypeError("a truth value is no number of patches")
    return index(value)


def _form(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def in_merge_order(frame: Tensor, merge: int) -> Tensor:
    """(height, width, ...) -> (height * width, ...), the `merge` x `merge` patches of one token next to each other."""
    height, width, *rest = frame.shape
    blocks = frame.reshape(height // merge, merge, width // merge, merge, *rest)
    return blocks.transpose(1, 2).reshape(height * width, *rest)


def position_ids(grids: Iterable[Grid], merge: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of every patch, int64 (N, 2), in the order in which the model takes patches."""
    parts = []
    for frames, height, width in grids:
        rows, columns = (
            torch.arange(height, device=device, dtype=torch.int64),
            torch.arange(width, device=device, dtype=torch.int64),
        )
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        parts.append(in_merge_order(place, merge).repeat(frames, 1))
    return torch.cat(parts)


def interpolated(table: Tensor, grids: Iterable[Grid], merge: int) -> Tensor:
    """table (side * side, V), a square map -> its bilinear resampling to each grid, float32 (N, V), in patch order.

    The corners of the map fall on the corners of the grid. Done one axis after the other.
    """
    side = square_side(table.shape[0])
    square = table[: side * side].reshape(side, side, -1).float()

    made: dict[tuple[int, int], Tensor] = {}  # a batch has many images, and few sizes of them
    parts = []
    for frames, height, width in grids:
        if (height, width) not in made:
            tall = _resampled(square, height)
            made[height, width] = in_merge_order(_resampled(tall.transpose(0, 1), width).transpose(0, 1), merge)
        parts.append(made[height, width].repeat(frames, 1))
    return torch.cat(parts)


def square_side(entries: int) -> int:
    """The side of a square table with so many entries; what is beyond the square is not used, as in HF."""
    return int(entries**0.5)


def _resampled(table: Tensor, size: int) -> Tensor:
    """table (side, ...) -> (size, ...): linear between the two nearest rows. The coordinates are exact fractions."""
    last, steps = table.shape[0] - 1, max(size - 1, 1)
    below = torch.tensor([place * last // steps for place in range(size)], device=table.device, dtype=torch.int64)
    parts = [place * last % steps / steps for place in range(size)]
    share = torch.tensor(parts, dtype=torch.float32, device=table.device)
    above = (below + 1).clamp(max=last)
    share = share.reshape(-1, *[1] * (table.dim() - 1))
    return torch.lerp(table[below], table[above], share)


def gathered(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """HF's precomputed interpolation: taps (N, 4) of the table and their weights -> float32 (N, V)."""
    total = torch.zeros(indices.shape[0], table.shape[-1], dtype=torch.float32, device=table.device)
    for tap in range(indices.shape[1]):
        total = total + table[indices[:, tap]].float() * weights[:, tap, None].float()
    return total


@dataclass(frozen=True)
class Segments:
    """Lengths of the stretches of patches that attend to each other and to nothing else: one a frame."""

    lengths: tuple[int, ...]

    @classmethod
    def of_grids(cls, grids: Iterable[Grid]) -> Segments:
        """One segment for each frame of each image and video."""
        return cls(tuple(height * width for frames, height, width in grids for _ in range(frames)))

    @classmethod
    def of(cls, cu_seqlens: Tensor | Segments, rows: int) -> Segments:
        """From HF's cumulative lengths (segments + 1). Raises InputError unless they run from 0 to `rows`."""
        if isinstance(cu_seqlens, Segments):
            ends, result = sum(cu_seqlens.lengths), cu_seqlens
        else:
            marks = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) and cu_seqlens.dim() == 1 else []
            result = cls(tuple(end - start for start, end in pairwise(marks) if end != start))
            ends = marks[-1] if marks and marks[0] == 0 and min(result.lengths, default=0) >= 0 else -1
        if ends != rows:
            raise InputError(
                f"cu_seqlens must rise from 0 to the {rows} rows of hidden_states, one value more than there are "
                f"segments; got {cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens}"
            )
        return result

    def folds(self, heads: int) -> list[Fold]:
        """Neighbours of one length together, as many as may exist at once."""
        result, start = [], 0
        for length, run in groupby(self.lengths):
            left = len(list(run))
            most = max(1, _LOGITS // (heads * length * length))
            while left:
                count = min(left, most)
                result.append(Fold(start, count, length))
                start, left = start + count * length, left - count
        return result


@dataclass(frozen=True)
class Fold:
    """`count` segments of `length` rows from row `start`: one batch of attention."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length
