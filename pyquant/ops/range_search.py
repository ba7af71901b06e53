# SPDX-License-Identifier: Apache-2.0
"""mse_range: for each scale of a weight, the range whose grid has the least square error, searched over the values.

It owns the typed function and its Meta kernel; the same over a histogram, for activations, is histogram.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_mse_range: Callable[..., tuple[Tensor, Tensor]] = native("mse_range")


def mse_range(x: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(lo, hi), float32, in the shape of the scales: the range whose grid has the least square error over x.

    The candidates are 100 % down to 21 % of the range of the finite values, both ends together; of equal ones the
    widest is taken. Where x has NaN or Inf it is the full range of the rest; (+inf, -inf) where nothing is finite.
    """
    try:
        return _mse_range(observed(x), axis, group, qmin, qmax, symmetric)
    except RuntimeError as error:
        raise op_error(error) from None


@meta("mse_range")
def _mse_range_meta(
    x: Tensor, axis: int | None, group: int, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    _checks.check_dtype("mse_range", "x", x, *_checks.FLOATS)
    _checks.check_search_grid("mse_range", qmin, qmax, symmetric)
    shape = _checks.scale_shape("mse_range", x, axis, group)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
