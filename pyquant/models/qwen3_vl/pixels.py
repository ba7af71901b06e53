# SPDX-License-Identifier: Apache-2.0
"""Pixels and grids as a caller gives them: which arguments mean no image, and which tensors are not pixels.

It owns these two checks, which the model and the host of a bundle share. What a grid means is grids.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyquant.errors import InputError


def present(pixels: Tensor | None, grid_thw: Any) -> tuple[Tensor | None, Any]:
    """Pixels and grids as given; (None, None) for a grid table of no rows without pixels, which is no image (or no
    video), as transformers has it."""
    if grid_thw is not None and len(grid_thw) == 0 and (pixels is None or len(pixels) == 0):
        return None, None
    return pixels, grid_thw


def require_floating(pixels: Tensor) -> None:
    """Raise InputError for pixels that are still bytes."""
    if not pixels.is_floating_point():
        raise InputError(
            f"pixel_values are {pixels.dtype}, expected floating point; let transformers' image processor scale and "
            "normalize the bytes"
        )
