# SPDX-License-Identifier: Apache-2.0
"""The smallest and largest value of a tensor: at once (minmax) or kept over batches (observe_minmax_, observe_ema_).

It owns the typed functions and their Meta kernels; turning a range into qparams is qparams.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_observe_minmax: Callable[..., None] = native("observe_minmax_")
_observe_ema: Callable[..., None] = native("observe_ema_")
_minmax: Callable[..., tuple[Tensor, Tensor]] = native("minmax")


def observe_minmax_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None = None) -> None:
    """Widens [lo, hi] to the finite values of x, in one pass.

    lo, hi: float32, () per tensor or (C,) per channel of `axis`; start at +inf and -inf. count: int64 (2,), elements
    seen and non-finite elements seen; both grow. x: float32, bfloat16 or float16. NaN and Inf are counted and skipped.
    """
    try:
        _observe_minmax(lo, hi, count, observed(x), axis)
    except RuntimeError as error:
        raise op_error(error) from None


def observe_ema_(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None, momentum: float) -> None:
    """Moves [lo, hi] toward the range of x: `lo = momentum * lo + (1 - momentum) * batch_lo`, in float32.

    The first batch with a finite value sets the range (per channel); a batch without one leaves it. Otherwise as
    `observe_minmax_`.
    """
    try:
        _observe_ema(lo, hi, count, observed(x), axis, momentum)
    except RuntimeError as error:
        raise op_error(error) from None


def minmax(x: Tensor, axis: int | None = None, group: int = 0) -> tuple[Tensor, Tensor]:
    """(lo, hi) of the finite values of x, float32, in the shape of the scales: (), (C,) or grouped.

    (+inf, -inf) where there is none.
    """
    try:
        return _minmax(observed(x), axis, group)
    except RuntimeError as error:
        raise op_error(error) from None


def check_observer(op: str, lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None) -> None:
    """Check the arguments of observe_minmax_ and observe_ema_."""
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    scales = 1
    for n in _checks.scale_shape(op, x, axis, 0):
        scales = n
    _checks.check_state(op, "lo", lo, torch.float32, scales)
    _checks.check_state(op, "hi", hi, torch.float32, scales)
    _checks.check_state(op, "count", count, torch.int64, 2)


def check_momentum(op: str, momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise OpArgumentError(f"{op}: momentum is {momentum:g}; expected 0 <= momentum < 1")


@meta("observe_minmax_")
def _observe_minmax_meta(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None) -> None:
    check_observer("observe_minmax_", lo, hi, count, x, axis)


@meta("observe_ema_")
def _observe_ema_meta(lo: Tensor, hi: Tensor, count: Tensor, x: Tensor, axis: int | None, momentum: float) -> None:
    check_momentum("observe_ema_", momentum)
    check_observer("observe_ema_", lo, hi, count, x, axis)


@meta("minmax")
def _minmax_meta(x: Tensor, axis: int | None, group: int) -> tuple[Tensor, Tensor]:
    _checks.check_dtype("minmax", "x", x, *_checks.FLOATS)
    shape = _checks.scale_shape("minmax", x, axis, group)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
