# SPDX-License-Identifier: Apache-2.0
"""All that depends on patch positions alone in Gemma4's vision tower, computed the same way for eager use and export.

It owns position embeddings, rotary tables, padding masks and pooling weights as values. The model's forward takes them
from here; an export adapter keeps them in StaticTables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.wrap.attention import AdditiveMask
from pyquant.wrap.rotary import RotaryTables


def padding_of(pixel_position_ids: Tensor) -> Tensor:
    """True (batch, patches) where a patch is padding: both coordinates are -1."""
    return (pixel_position_ids == -1).all(dim=-1)


def position_embeddings(table: Tensor, pixel_position_ids: Tensor, padding: Tensor) -> Tensor:
    """table (2, positions, V): row x of the first plus row y of the second, zero at padding -> (B, P, V)."""
    ids = pixel_position_ids.clamp(min=0)
    size = table.shape[1]
    if ids.numel() and int(ids.max()) >= size:
        raise InputError(
            f"pixel_position_ids reach {int(ids.max())}, but the model's position table ends at {size - 1}; "
            "use fewer patches per side"
        )
    summed = nn.functional.embedding(ids[..., 0], table[0]) + nn.functional.embedding(ids[..., 1], table[1])
    return summed.masked_fill(padding.unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class Pooling:
    """`weight` (B, L, P) float32, which averages k x k patches and scales by sqrt(V); and which tokens are real.

    Either `valid` (B, L) bool (eager: any positions), or `counts` (static: the first counts[i] tokens of image i).
    """

    weight: Tensor
    valid: Tensor | None = None
    counts: tuple[int, ...] | None = None

    @classmethod
    def of(cls, pixel_position_ids: Tensor, padding: Tensor, length: int, root_hidden_size: float) -> Pooling:
        """Pools of `length` tokens per image. Raises InputError when patches do not divide into that many squares.

        A padding patch has weight zero, which also spares the graph the zeroing of its hidden state. As in HF, pools
        are numbered row by row with as many per row as the image's largest x, and a token is real when a patch
        falls into it (padding counts as standing at (0, 0)).
        """
        batch, patches, _ = pixel_position_ids.shape
        kernel = math.isqrt(patches // length) if 0 < length <= patches else 0
        if kernel < 2 or kernel * kernel * length != patches:
            raise InputError(
                f"{patches} patches do not pool into {length} tokens: that takes k * k * {length} patches with a "
                "pooling kernel k of at least 2 (transformers itself fails for k = 1); pad the patches, or check "
                "pooling_kernel_size"
            )
        ids = pixel_position_ids.clamp(min=0)
        per_row = (ids[..., 0].amax(dim=-1, keepdim=True) + 1) // kernel
        pool = ids[..., 0] // kernel + per_row * (ids[..., 1] // kernel)
        if int(pool.max()) >= length:
            raise InputError(
                f"pixel_position_ids need {int(pool.max()) + 1} pools of {kernel} x {kernel}, but {patches} patches "
                f"give {length}; the positions of an image must fill a grid"
            )
        share = (~padding).to(torch.float32) * (root_hidden_size / kernel**2)
        weight = share.new_zeros(batch, length, patches).scatter_(1, pool.unsqueeze(1), share.unsqueeze(1))
        valid = torch.zeros(batch, length, dtype=torch.bool, device=pool.device).scatter_(1, pool, True)
        return cls(weight, valid=valid)

    def static(self) -> Pooling:
        """The same without rows that are stripped anyway: every image's real tokens first, as many rows as the most."""
        assert self.valid is not None, "already static"
        counts = tuple(int(n) for n in self.valid.sum(dim=1))
        weight = self.weight.new_zeros(len(counts), max(counts), self.weight.shape[-1])
        for row, count in enumerate(counts):
            weight[row, :count] = self.weight[row, self.valid[row]]
        return Pooling(weight, counts=counts)

    def strip(self, hidden: Tensor) -> Tensor:
        """(B, L, V) -> (real tokens of all images, V)."""
        if self.counts is None:
            return hidden[self.valid]
        if set(self.counts) == {hidden.shape[1]}:
            return hidden.reshape(-1, hidden.shape[-1])
        return torch.cat([hidden[row, :count] for row, count in enumerate(self.counts)])


@dataclass(frozen=True)
class VisionTables:
    """What one batch of patch positions means to the tower."""

    position_embeddings: Tensor
    rotary: RotaryTables
    mask: AdditiveMask | None
    pooling: Pooling


class StaticTables(nn.Module):
    """Owns tensors for one profile, as buffers: they move with the adapter that has them, and belong to it alone.

    Rows that are equal for all images of a batch are kept once and broadcast.
    """

    def __init__(
        self,
        *,
        position_embeddings: Tensor | None = None,
        rotary: RotaryTables | None = None,
        mask: AdditiveMask | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__()
        cos, signed_sin = (None, None) if rotary is None else rotary
        self.counts = None if pooling is None else pooling.counts
        self.register_buffer("position_embeddings", _once(position_embeddings))
        self.register_buffer("cos", _once(cos))
        self.register_buffer("signed_sin", _once(signed_sin))
        self.register_buffer("mask_values", _once(None if mask is None else mask.values))
        self.register_buffer("pool_weight", _once(None if pooling is None else pooling.weight))

    position_embeddings: Tensor
    cos: Tensor
    signed_sin: Tensor
    mask_values: Tensor | None
    pool_weight: Tensor

    @property
    def rotary(self) -> RotaryTables:
        return RotaryTables(self.cos, self.signed_sin)

    @property
    def mask(self) -> AdditiveMask | None:
        return None if self.mask_values is None else AdditiveMask(self.mask_values)

    @property
    def pooling(self) -> Pooling:
        return Pooling(self.pool_weight, counts=self.counts)

    def vision(self) -> VisionTables:
        """All of them, as the vision model takes them."""
        return VisionTables(self.position_embeddings, self.rotary, self.mask, self.pooling)


def _once(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    same = tensor.shape[0] > 1 and bool((tensor == tensor[:1]).all())
    return (tensor[:1] if same else tensor).detach().clone()
