# SPDX-License-Identifier: Apache-2.0
"""Mean, smallest, largest, standard deviation and the number of non-finite values of a tensor, read in one pass.

It owns the typed function and its Meta kernel; showing the numbers is pyquant.trace.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_tensor_stats: Callable[..., Tensor] = native("tensor_stats")


def tensor_stats(x: Tensor) -> Tensor:
    """float64 (5,): mean, min, max, population standard deviation, count of NaN and Inf.

    The first four are over the finite values, NaN where there is none. x: float32, bfloat16 or float16, any shape.
    Exact to float32 for any mean: squares are of differences from the mean of a block. Raises
    OpArgumentError for another dtype.
    """
    try:
        return _tensor_stats(observed(x))
    except RuntimeError as error:
        raise op_error(error) from None


@meta("tensor_stats")
def _tensor_stats_meta(x: Tensor) -> Tensor:
    _checks.check_dtype("tensor_stats", "x", x, *_checks.FLOATS)
    return x.new_empty((5,), dtype=torch.float64)
