# SPDX-License-Identifier: Apache-2.0
"""GPTQ: the integers of a weight column by column, what each column loses carried to the columns that are still free.

It owns the order of columns, damping and the factor that the solver takes. Ranges are range_search.py, second moments
statistics.py, the update of the columns is native (ops.gptq_solve).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant import ops
from pyquant.algorithms.blocks import Propagate
from pyquant.algorithms.decide import Choice, Way, decide
from pyquant.algorithms.range_search import Ranges, decision, grids_of
from pyquant.algorithms.statistics import Moment
from pyquant.algorithms.targets import chosen_weights
from pyquant.decision import Decision
from pyquant.distributed import Group
from pyquant.errors import CalibrationError, InputError
from pyquant.qparams import QParams
from pyquant.spec import PerGroup, QuantSpec
from pyquant.weight import Weight
from pyquant.wrap import QModule

__all__ = ["Solver", "gptq"]

HOW = "gptq"


def gptq(
    q: QModule,
    batches: Iterable[Any],
    *,
    match: str | Sequence[str] = "*",
    max_bits: int = 4,
    ranges: Ranges = "search",
    damping: float = 0.01,
    order: bool = True,
    propagate: Propagate = "float",
    alpha: float = 0.0,
    memory: int = 1 << 28,
    resume: Path | None = None,
    progress: bool | None = None,
    group: Group | None = None,
) -> list[Decision]:
    """Decide the weights of linears by GPTQ (Frantar et al. 2022, arXiv 2210.17323), experts too.

    q: a tree in the CALIBRATE phase, before calibrate. batches: as calibrate takes them, an iterable that can be read
    several times; the float model runs on each. match: globs over paths of weights. max_bits: weights of more bits are
    left to convert; at 8 bits the nearest integer loses nothing that can be measured.

    ranges: "search" for the range with the least error sum_c H_cc (w_c - w'_c)^2 (on SmolLM2-135M 28.9 of perplexity
    after GPTQ, where the whole range, "minmax", gives 40.1). damping: added to the diagonal of H = X^T X, times its
    mean. order: columns of large inputs first ("act-order"); a group keeps the columns that it has in the file, its
    range is found before.

    propagate: "float": every layer sees the float model's inputs; "quantized": block by block, what the decided blocks
    before it make. alpha: with quantized propagation, how much of what the inputs have lost is made up for (GPTAQ, Li
    et al. 2025, arXiv 2504.02692; 1 is all of it, 0 none; not for experts, whose rows may differ).

    memory: bytes that second moments may take; of a model that needs more, blocks are decided one after the other.
    resume: a folder with a file for each decided block, from which a run that was ended goes on and gives the same
    bits. group: processes with other parts of the data, as of calibrate; second moments are those of all the data, up
    to the rounding of their sum (Moments.merge), and all ranks decide the same.

    Returns a Decision for each weight: the loss is the squared error of the layer's output by H, relative to that
    output's square. An expert that no data reached gets the nearest integers on its least-square range, and is named.

    Raises PolicyError where no weight is left to decide, PhaseError for a tree that is not calibrating,
    CalibrationError for data that the model fails on or that gives NaN.
    """
    if not 0 <= damping < 1:
        raise InputError(f"gptq: damping is a part of the mean of diag(H), from 0 to 1, got {damping!r}")
    if not 0 <= alpha <= 1 or (alpha and propagate != "quantized"):
        raise InputError(f"gptq: alpha is from 0 to 1, and 0 unless propagate='quantized'; got {alpha=}, {propagate=}")
    solver = Solver(ranges, damping, order, alpha)
    chosen = chosen_weights(q, match, max_bits)
    way = Way(memory, propagate, "cross" if alpha else "gram", resume, progress, group)
    settings = {"ranges": ranges, "damping": damping, "order": order, "alpha": alpha}
    return decide(q, batches, chosen, solver, way, HOW, paths=[weight.path for weight in chosen], **settings)


@dataclass(frozen=True)
class _Factor:
    """U of H^-1 = U^T U (C, C) float32, in the order of `columns` (C,); `correction`: see ops.gptq_solve."""

    upper: Tensor
    columns: Tensor
    correction: Tensor | None


class Solver:
    """Chooses for one weight after the other; linears that share an input follow each other and share a factor."""

    def __init__(self, ranges: Ranges, damping: float, order: bool, alpha: float) -> None:
        self.ranges, self.damping, self.order, self.alpha = ranges, damping, order, alpha
        self._last: tuple[Moment, _Factor] | None = None

    def __call__(self, weight: Weight, moments: Sequence[Moment | None]) -> Choice:
        matrices, grids, stacked = grids_of(weight, moments, self.ranges)
        integers, lost, whole = [], 0.0, 0.0
        for matrix, grid, moment in zip(matrices, grids, moments, strict=True):
            if moment is None:
                integers.append(_nearest(matrix, grid))
                continue
            found, loss = _solve(matrix, self._factor_of(weight, moment), grid)
            integers.append(found)
            lost += 2 * loss
            whole += float(((matrix @ moment.gram) * matrix).double().sum())
        record = decision(weight, HOW, lost / whole if whole else None, moments)
        return Choice(stacked, torch.cat(integers), record)

    def _factor_of(self, weight: Weight, moment: Moment) -> _Factor:
        if self._last is None or self._last[0] is not moment:
            factor = _factor(moment, self.damping, self.order, self.alpha)
            if factor is None:
                raise CalibrationError(
                    f"gptq: the second moments of what {weight.path!r} multiplies, of {moment.rows} rows, have no "
                    f"inverse with damping={self.damping}; use a larger one, such as 0.01, or more data"
                )
            self._last = (moment, factor)
        return self._last[1]


def _factor(moment: Moment, damping: float, order: bool, alpha: float) -> _Factor | None:
    """The factor of the damped inverse, in float64: a Hessian of a real network has a condition number of 1e9. None for
    one without an inverse.

    A column whose input was always 0 gets the mean of the diagonal: its weight is rounded to the nearest.
    """
    h = moment.gram.double()
    diagonal = h.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean if float(mean) > 0 else 1.0
    columns = torch.argsort(diagonal, descending=True, stable=True)
    if not order:
        columns = torch.arange(len(h), dtype=torch.int64, device=h.device)
    del diagonal  # a view; of a wide layer each of these matrices takes gigabytes, so that few are there at a time
    h = h[columns]
    h = h[:, columns]
    h.diagonal().add_(damping * mean)
    # With L L^T = H of the columns in reverse, H^-1 = U^T U for U = L^-1 with rows and columns in reverse.
    h = h.flip(0, 1)
    lower, failed = torch.linalg.cholesky_ex(h)
    del h
    if int(failed):
        return None
    upper = torch.eye(len(lower), dtype=lower.dtype, device=lower.device).mT  # by columns, as the solver has it
    torch.linalg.solve_triangular(lower, upper, upper=False, out=upper)
    del lower
    upper = upper.flip(0, 1)
    correction = None
    if alpha and moment.cross is not None:
        lost = (moment.cross - moment.gram).double()[columns][:, columns]  # D X^T, D what the inputs have lost
        correction = (alpha * torch.triu(lost @ upper.T, 1) @ upper).float()
    return _Factor(upper.float(), columns, correction)


def _solve(matrix: Tensor, factor: _Factor, grid: QParams) -> tuple[Tensor, float]:
    """(integers (out, in), loss) of one matrix."""
    spec, columns = grid.spec, factor.columns
    scale, zero_point, group = grid.scale, grid.zero_point, 0
    if isinstance(spec.granularity, PerGroup):  # each column takes its scale along
        owner = columns // spec.granularity.size
        scale, zero_point, group = scale[:, owner].contiguous(), zero_point[:, owner].contiguous(), 1
    elif scale.dim() == 0:
        scale, zero_point = scale.expand(len(matrix)).contiguous(), zero_point.expand(len(matrix)).contiguous()
    found, loss = ops.gptq_solve(
        matrix[:, columns].contiguous(), factor.upper, scale, zero_point, group, spec.qmin, spec.qmax, factor.correction
    )
    integers = torch.empty_like(found)
    integers[:, columns] = found
    return integers, float(loss.double().sum())


def _nearest(matrix: Tensor, grid: QParams) -> Tensor:
    spec: QuantSpec = grid.spec
    storage = ops.STORAGE[spec.dtype.name]
    return ops.quantize(matrix, grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax, storage).int()
