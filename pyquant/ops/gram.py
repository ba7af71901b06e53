# SPDX-License-Identifier: Apache-2.0
"""gram_accumulate_: the second moments of the columns of a matrix, added up over batches.

It owns the typed function and its Meta kernel; what solves with them is gptq.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_gram_accumulate: Callable[..., None] = native("gram_accumulate_")


def gram_accumulate_(gram: Tensor, x: Tensor) -> None:
    """Adds `x.T @ x` to gram, in float32.

    gram: float32 (D, D), contiguous and symmetric (start it at zeros): the upper triangle is computed, the lower one
    becomes its mirror image. x: float32, bfloat16 or float16, (..., D); each row counts once. NaN and Inf in a column
    reach that column's row and column of gram, nothing else.

    The rows of one call are summed 256 at a time, from zero, by fused multiply-adds, and each sum is then added to
    gram: the error of an element grows with 256 + rows / 256 roundings, not with all rows (100,000 rows: at most
    4e-5 of the sum of magnitudes, about 1e-6 for data). The result depends neither on the number of threads nor on
    the instruction set, but on how the rows are cut into calls. Beside gram it takes 512 rows of float32.
    """
    try:
        _gram_accumulate(gram, observed(x))
    except RuntimeError as error:
        raise op_error(error) from None


def check_gram(op: str, gram: Tensor, x: Tensor) -> None:
    """Check the arguments of gram_accumulate_."""
    _checks.check_dtype(op, "x", x, *_checks.FLOATS)
    if x.dim() < 1:
        raise OpArgumentError(f"{op}: x has shape {tuple(x.shape)}; expected (..., columns)")
    _checks.check_dtype(op, "gram", gram, torch.float32)
    columns = x.shape[-1]
    if gram.dim() != 2 or gram.shape[0] != columns or gram.shape[1] != columns:
        raise OpArgumentError(
            f"{op}: gram has shape {tuple(gram.shape)}; x of shape {tuple(x.shape)} needs ({columns}, {columns})"
        )


@meta("gram_accumulate_")
def _gram_accumulate_meta(gram: Tensor, x: Tensor) -> None:
    check_gram("gram_accumulate_", gram, x)
