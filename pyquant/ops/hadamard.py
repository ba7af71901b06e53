# SPDX-License-Identifier: Apache-2.0
"""hadamard_: products of lines with a Hadamard matrix, in place, without the matrix.

It owns the typed function and its Meta kernel; which matrices there are is algorithms/orthogonal.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, op_error

_hadamard: Callable[..., None] = native("hadamard_")


def hadamard_(x: Tensor, core: Tensor) -> None:
    """`x = x @ H` in float64, H being `core` doubled as often as it takes: [[H, H], [H, -H]] (Sylvester, 1867).

    x: float64 (..., n), contiguous. core: float64 (c, c), n = c * 2^d. Each line of n values takes n * (c + d)
    operations instead of n * n (the fast Walsh-Hadamard transform; a core of one number costs none). The sums of a core
    are taken in the order of its rows, the rest by pairs: the result depends neither on threads, nor on the
    instruction set, nor on how lines are cut into calls. Raises OpArgumentError for another dtype or shape.
    """
    try:
        _hadamard(x, core)
    except RuntimeError as error:
        raise op_error(error) from None


def check_hadamard(op: str, x: Tensor, core: Tensor) -> None:
    """Check the arguments of hadamard_."""
    _checks.check_dtype(op, "x", x, torch.float64)
    _checks.check_dtype(op, "core", core, torch.float64)
    if core.dim() != 2 or core.shape[0] != core.shape[1] or not len(core):
        raise OpArgumentError(f"{op}: core has shape {tuple(core.shape)}; expected a square matrix")
    if x.dim() < 1:
        raise OpArgumentError(f"{op}: x has shape {tuple(x.shape)}; expected (..., channels)")
    n, order = x.shape[-1], len(core)
    if n < 1 or n % order or (n // order) & (n // order - 1):
        raise OpArgumentError(
            f"{op}: x of shape {tuple(x.shape)} has {n} channels; expected {order} (of the core) times a power of two"
        )


@meta("hadamard_")
def _hadamard_meta(x: Tensor, core: Tensor) -> None:
    check_hadamard("hadamard_", x, core)
