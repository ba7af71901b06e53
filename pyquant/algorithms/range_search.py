# SPDX-License-Identifier: Apache-2.0
"""The range of a weight by what its inputs are: the least square error of the layer's output, inputs taken as
independent.

It owns the choice of a grid from a weight and the second moments of its inputs, and the algorithm that decides weights
by it with the nearest integers. The search over candidates is native (ops.weighted_mse_range).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyquant import ops
from pyquant.algorithms.decide import Choice, Way, decide
from pyquant.algorithms.statistics import Moment
from pyquant.algorithms.targets import chosen_weights
from pyquant.decision import Decision
from pyquant.distributed import Group
from pyquant.qparams import QParams
from pyquant.spec import PerTensor, QuantSpec
from pyquant.weight import Weight
from pyquant.wrap import QModule

__all__ = ["Ranges", "decision", "grid_of", "grids_of", "nearest", "range_search"]

HOW = "range search"
Ranges = Literal["search", "minmax"]


def range_search(
    q: QModule,
    batches: Iterable[Any],
    *,
    match: str | Sequence[str] = "*",
    max_bits: int = 8,
    memory: int = 1 << 28,
    resume: Path | None = None,
    progress: bool | None = None,
    group: Group | None = None,
) -> list[Decision]:
    """Decide weights by the nearest integers on the grid whose output error is least: sum_c E[x_c^2] (w_c - w'_c)^2.

    The importance of a column is the second moment of its input over `batches` (the diagonal of H in GPTQ), where the
    `mse` observer takes all columns alike. Arguments and errors as of `gptq`.
    """
    chosen = chosen_weights(q, match, max_bits)
    way = Way(memory, resume=resume, progress=progress, group=group)
    return decide(q, batches, chosen, nearest, way, HOW, paths=[weight.path for weight in chosen])


def nearest(weight: Weight, found: Sequence[Moment | None]) -> Choice:
    """The nearest integers on the grid of least error by the second moments of its matrices."""
    matrices, grids, stacked = grids_of(weight, found, "search")
    lost = whole = 0.0
    for matrix, grid, moment in zip(matrices, grids, found, strict=True):
        if moment is not None:
            spec = grid.spec
            value = ops.fake_quantize(matrix, grid.scale, grid.zero_point, grid.axis, grid.group, spec.qmin, spec.qmax)
            lost += float(((matrix - value).square() @ moment.diagonal).double().sum())
            whole += float((matrix.square() @ moment.diagonal).double().sum())
    return Choice(stacked, None, decision(weight, HOW, lost / whole if whole else None, found))


def decision(weight: Weight, how: str, loss: float | None, moments: Sequence[Moment | None]) -> Decision:
    """The record of what was decided by these moments, with a note of experts that had none."""
    assert weight.spec is not None
    without = [str(index) for index, moment in enumerate(moments) if moment is None]
    note = f"experts {', '.join(without)} saw no data: nearest integers" if without else ""
    rows = sum(moment.rows for moment in moments if moment is not None)
    return Decision(weight.path, how, weight.spec.dtype.bits, loss, rows, note=note)


def grids_of(
    weight: Weight, moments: Sequence[Moment | None], ranges: Ranges
) -> tuple[Sequence[Tensor], Sequence[QParams], QParams]:
    """The matrices of a weight, each (out, in) float32, the grid of each, and the grid of the whole weight.

    Matrices have grids of their own, by their own inputs; with one scale for the whole weight they share one, by all
    inputs together.
    """
    spec = weight.spec
    assert spec is not None, f"{weight.path} is float"
    value = weight.value.float()
    matrices = value.chunk(weight.matrices)
    diagonals = [None if moment is None else moment.diagonal for moment in moments]
    if isinstance(spec.granularity, PerTensor):
        seen = [diagonal for diagonal in diagonals if diagonal is not None]
        whole = grid_of(value, torch.stack(seen).sum(0) if seen else None, spec, ranges)
        return matrices, [whole] * len(matrices), whole
    grids = [grid_of(matrix, own, spec, ranges) for matrix, own in zip(matrices, diagonals, strict=True)]
    scale, zero_point = (torch.cat([getattr(grid, part) for grid in grids]) for part in ("scale", "zero_point"))
    return matrices, grids, QParams(spec, scale, zero_point)


def grid_of(weight: Tensor, importance: Tensor | None, spec: QuantSpec, ranges: Ranges) -> QParams:
    """The grid of a matrix (out, in) float32 in the format `spec`: of its whole range for "minmax", or searched with
    the `importance` (in,) of its columns (None: all alike)."""
    axis = getattr(spec.granularity, "axis", None)
    group = getattr(spec.granularity, "size", 0)
    if ranges == "search":
        if importance is None or not bool((importance > 0).any()):
            lo, hi = ops.mse_range(weight, axis, group, spec.qmin, spec.qmax, spec.symmetric)
        else:
            lo, hi = ops.weighted_mse_range(weight, importance, axis, group, spec.qmin, spec.qmax, spec.symmetric)
    else:
        lo, hi = _whole_range(weight, spec)
    return QParams(spec, *ops.choose_qparams(lo, hi, spec.qmin, spec.qmax, spec.symmetric))


def _whole_range(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    if isinstance(spec.granularity, PerTensor):
        return weight.amin(), weight.amax()
    size = getattr(spec.granularity, "size", 0)
    grouped = weight.reshape(len(weight), -1, size) if size else weight
    return grouped.amin(-1), grouped.amax(-1)
