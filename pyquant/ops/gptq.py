# SPDX-License-Identifier: Apache-2.0
"""gptq_solve: the integers of a weight, chosen column by column, with what each column loses moved to the next ones.

It owns the typed function and its Meta kernel; second moments are gram.py, ranges range_search.py. Damping, the order
of the columns and the Cholesky factor are the caller's (`pyquant.algorithms`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops._native import meta, native, observed, op_error

_gptq_solve: Callable[..., tuple[Tensor, Tensor]] = native("gptq_solve")


def gptq_solve(
    weight: Tensor,
    hinv: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    group: int,
    qmin: int,
    qmax: int,
    correction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(integers, loss) of a weight by GPTQ (Frantar et al. 2022, arXiv 2210.17323, equations 2 and 3).

    For the columns j = 0, 1, ... of every row, in float32:

        q[j] = clamp(round_half_away(w[j] / scale) + zero_point, qmin, qmax)
        e    = (w[j] - (q[j] - zero_point) * scale) / hinv[j, j]
        w[k] = fma(-e, hinv[j, k], w[k])        for all k > j
        loss = loss + e * e / 2                 in float64

    weight: float32 (R, C), columns in the order in which they are processed; it is not changed. hinv: float32 (C, C),
    U of `H^-1 = U.T @ U`, U upper triangular with a positive diagonal, H the damped second moments of the inputs in
    the same order (what is below the diagonal is not read). scale float32 and zero_point int32: (R,) with group 0, or
    (R, C / group). Groups of columns in another order: give each column its scale, (R, C) with group 1.

    integers: int32 (R, C), on the grid. loss: float32 (R,), of each row the least increase of
    `(w - w').T @ H @ (w - w') / 2` that is left. A row with NaN has qmin and loss NaN from there on; other rows are
    not touched by it. Every weight receives the errors of the columns before it one after the other, so that the
    result depends neither on blocks, nor on threads, nor on the instruction set.

    correction: float32 (C, C), P of GPTAQ (Li et al. 2025, arXiv 2504.02692): the weight becomes
    `weight + weight @ P` before the first column. With X the inputs (C, N) that the quantized layers before make,
    X_float those of the float model, and D = X_float - X:

        P = triu((D @ X.T) @ U.T, 1) @ U

    adds to the columns k > j what makes up best, by least squares, for `weight[:, j] * D[j]`: the target of GPTAQ,
    counted column by column. `P = D @ X.T @ H^-1` is its form without the order: the minimum of
    `|| W' X - W X_float ||` over all W'. Both are linear in the float weight, hence one product. (GPTAQ's own code
    multiplies P by the weights as updated so far.)

    Raises OpArgumentError for shapes, dtypes, scales and a diagonal that are not so.
    """
    weight = observed(weight)
    if correction is not None:
        _check_correction(weight, correction)
        weight = torch.addmm(weight, weight, observed(correction))
    try:
        return _gptq_solve(weight, hinv, scale, zero_point, group, qmin, qmax)
    except RuntimeError as error:
        raise op_error(error) from None


def check_solve(
    op: str, weight: Tensor, hinv: Tensor, scale: Tensor, zero_point: Tensor, group: int, qmin: int, qmax: int
) -> None:
    """Check the arguments of gptq_solve but for values."""
    _checks.check_dtype(op, "weight", weight, torch.float32)
    if weight.dim() != 2:
        raise OpArgumentError(f"{op}: weight has shape {tuple(weight.shape)}; expected (rows, columns)")
    _check_square(op, "hinv", hinv, weight)
    _checks.check_grid(op, qmin, qmax)
    _checks.check_scales(op, weight, scale, zero_point, 1 if group else 0, group)


def _check_square(op: str, name: str, matrix: Tensor, weight: Tensor) -> None:
    columns = weight.shape[1]
    _checks.check_dtype(op, name, matrix, torch.float32)
    if matrix.dim() != 2 or matrix.shape[0] != columns or matrix.shape[1] != columns:
        raise OpArgumentError(
            f"{op}: {name} has shape {tuple(matrix.shape)}; weight of shape {tuple(weight.shape)} needs "
            f"({columns}, {columns})"
        )


def _check_correction(weight: Tensor, correction: Tensor) -> None:
    _checks.check_dtype("gptq_solve", "weight", weight, torch.float32)
    if weight.dim() != 2:
        raise OpArgumentError(f"gptq_solve: weight has shape {tuple(weight.shape)}; expected (rows, columns)")
    _check_square("gptq_solve", "correction", correction, weight)


@meta("gptq_solve")
def _gptq_solve_meta(
    weight: Tensor, hinv: Tensor, scale: Tensor, zero_point: Tensor, group: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    check_solve("gptq_solve", weight, hinv, scale, zero_point, group, qmin, qmax)
    rows, columns = weight.shape
    return weight.new_empty((rows, columns), dtype=torch.int32), weight.new_empty((rows,))
