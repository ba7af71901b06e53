# SPDX-License-Identifier: Apache-2.0
"""A padded batch of images, one at a time without its padding: what statistics of an algorithm are made of.

It owns taking images out of a batch and putting results back in place.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyquant.wrap.attention import FILL, AdditiveMask
from pyquant.wrap.rotary import RotaryTables

__all__ = ["image_by_image"]


def image_by_image(
    forward: Callable[[Tensor, RotaryTables, AdditiveMask | None], Tensor],
    hidden: Tensor,
    tables: RotaryTables,
    mask: AdditiveMask,
) -> Tensor:
    """hidden (B, P, V) through `forward`, with zeros at padding. tables (B or 1, P, 1, D), mask (B, 1, 1, P)."""
    out = hidden.new_zeros(hidden.shape)
    for image, keys in enumerate(mask.values[:, 0, 0] > FILL / 2):
        if bool(keys.any()):
            own = (slice(image, image + 1), keys)
            part = RotaryTables(*(table[min(image, len(table) - 1), keys][None] for table in tables))
            out[own] = forward(hidden[own], part, None)
    return out
