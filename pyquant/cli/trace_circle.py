# SPDX-License-Identifier: Apache-2.0
"""The third level of `pyquant trace`: tensors of an exported Circle file against their eager values.

It owns which graph is exported for one batch, and the table. Measuring is pyquant.verify.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyquant.circle import Model
    from pyquant.verify.tensors import TensorDiff, TensorReport
    from pyquant.wrap import QModule

SHOWN = 10
#: Share of its range (PEIR) by which no tensor is off through flips of a rounding alone (eager adds up in float32, a
#: file in integers, and small networks make much of one step); an error goes beyond.
FAR = 0.2


def measured(fp: nn.Module, q: QModule, batch: Mapping[str, Tensor], file: Path | None) -> dict[str, TensorReport]:
    """The measurement of each graph by the name of its module: the model's, and the base model's where it has one.

    (The graph of a model with a head begins where its base model ends.) file: runs in place of the exported graph with
    the same inputs. Raises InputError for a file of none of them, CircleError for no Circle file.
    """
    import torch

    from pyquant import circle, exporter, verify
    from pyquant.batch import call, tensors_in
    from pyquant.errors import InputError
    from pyquant.models import family_of
    from pyquant.models.alone import alone

    theirs = None if file is None else _inputs(circle.read(file))
    family = family_of(type(fp))
    base = getattr(fp, "base_model_prefix", "")
    found, seen = {}, []
    for name in ["", *([base] if base and hasattr(q, base) else [])]:
        part: Any = q.get_submodule(name)
        with torch.no_grad():
            outputs = len(list(tensors_in(call(part, _arguments_of(part, batch)))))
            graph = alone(part, _arguments_of(part, batch), batch, outputs, family)
        program = exporter.export(part, graph.profile, allow_float=True)
        names = [tensor.name for tensor in program.inputs]
        seen.append(f"{name or '(model)'}: {', '.join(names)}")
        if theirs is None or theirs == names:
            found[name] = verify.tensors(program, [graph.inputs[each] for each in names], file)
    if not found:
        raise InputError(
            f"--circle {file}: its inputs are {', '.join(theirs or ())}, those of the graphs exported here for these "
            f"inputs {'; '.join(seen)}; give a file that was exported from one of them, or no file"
        )
    return found


def _inputs(model: Model) -> list[str]:
    return [model.tensors[index].name for index in model.inputs]


def _arguments_of(part: QModule, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the forward of a part takes."""
    import inspect

    parameters = inspect.signature(part.forward).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict(batch)
    return {name: value for name, value in batch.items() if name in parameters}


def render(found: Mapping[str, TensorReport], count: int = SHOWN) -> str:
    """The worst tensors of each graph by steps of their grid (float graphs: by PEIR), and where the steps begin."""
    out = []
    for name, report in found.items():
        worst = report.most_steps(count) or report.worst(count)
        title = f"graph of {name or '(model)'}: {len(report.tensors)} tensors compared, "
        differ = sum(row.unequal > 0 for row in report.tensors)
        out.append(title + (f"{differ} differ, the worst are" if differ else "each equals eager's bit for bit"))
        if differ:
            out.append(_table(tuple(row for row in worst if row.unequal)))
        if report.constants:
            out += [f"constants that are not the exported ones: {len(report.constants)}", _table(report.constants)]
        if report.unchecked:
            out.append(f"{len(report.unchecked)} tensors have no eager value, such as {report.unchecked[0]!r}")
        first = next((row for row in report.tensors if row.peir > FAR), None)
        if first is not None:
            out.append(
                f"the first that is off by more than {FAR:.0%} of its range: {first.name}, "
                f"by {first.peir:.0%} ({first.op})"
            )
        out.append("")
    return "\n".join(out)


def _table(rows: tuple[TensorDiff, ...]) -> str:
    from pyquant.trace.render import table

    columns = ("tensor", "made by", "stands for", "type"), ("steps", "unequal", "max|diff|", "PEIR", "SQNR dB")
    cells = [
        [
            *(row.name, row.op, row.node, f"{row.dtype} {row.shape}"),
            "-" if row.max_lsb is None else f"{row.max_lsb:g}",
            f"{row.unequal} of {row.elements}",
            *(f"{value:.4g}" for value in (row.max_abs, row.peir, row.sqnr_db)),
        ]
        for row in rows
    ]
    return table(*columns, cells)
