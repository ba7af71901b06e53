# SPDX-License-Identifier: Apache-2.0
"""One smoke case from prepare to its .circle file, run in integers, and its result.

It owns the steps and what counts as a failure. Cases are cases.py, showing results is pyquant/cli.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant import circle, exporter, lifecycle, models, verify
from pyquant.batch import call, tensors_in
from pyquant.errors import ProfileError, PyquantError
from pyquant.metrics import mean_abs_diff, to_plain
from pyquant.models.alone import alone
from pyquant.policy import Policy, literal
from pyquant.smoke.cases import Case
from pyquant.trace import difference
from pyquant.verify.tolerance import op_faults
from pyquant.wrap import QModule

OK, FAILED, NO_GRAPH = "ok", "FAILED", "no graph"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one case. `status`: ok, FAILED, or `no graph` for a module without a graph of its own.

    reasons: why it is not ok. mean_abs, max_abs, peir, sqnr: float against quantized, the worst output. dry: how many
    sites got no values from the call (they stay float). missing: tensors of the graph without qparams. op_lsb: the
    largest difference of any operator of the file, with eager's tensors as inputs, in steps of its grid; output_lsb:
    of any output, end to end; output_equal: share of its elements that are equal. artifact: the file, where one was
    kept.
    """

    case: str
    recipe: str
    status: str = OK
    reasons: tuple[str, ...] = ()
    mean_abs: float | None = None
    max_abs: float | None = None
    peir: float | None = None
    sqnr: float | None = None
    shapes_match: bool | None = None
    finite: bool | None = None
    dry: int = 0
    missing: int | None = None
    op_lsb: float | None = None
    output_lsb: float | None = None
    output_equal: float | None = None
    operators: int | None = None
    bytes: int | None = None
    artifact: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities as text."""
        return to_plain(dataclasses.asdict(self))


def run(case: Case, recipe: str = "w8a8", *, export: bool = True, folder: Path | None = None) -> Result:
    """prepare, calibrate, convert, compare; with `export` also the file: written to `folder` (if any), checked, run in
    pyquant's own runner. Every error is in the result.
    """
    result = Result(case.name, recipe)
    if case.module is None:
        return dataclasses.replace(result, status=FAILED, reasons=(case.reason,))
    faults: list[str] = []
    try:
        q, no_data = _quantized(case, recipe)
        with torch.no_grad():
            expected, got = (list(tensors_in(call(module, case.call))) for module in (case.module, q))
        result = dataclasses.replace(result, dry=no_data, **_compared(expected, got))
        faults += [] if result.shapes_match else [f"shapes {_shapes(got)}, expected {_shapes(expected)}"]
        faults += [] if result.finite else ["the quantized output is not finite"]
        if export:
            result, more = _exported(case, q, len(got), result, folder)
            faults += more
    except ImportError:
        raise
    except Exception as error:  # any error is the result of its case
        reason = str(error) if isinstance(error, PyquantError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ProfileError) and not faults:
            return dataclasses.replace(result, status=NO_GRAPH, reasons=(reason,))
        faults.append(reason)
    return dataclasses.replace(result, status=FAILED if faults else OK, reasons=tuple(faults))


def _quantized(case: Case, recipe: str) -> tuple[QModule, int]:
    assert case.module is not None, case.reason
    q = lifecycle.prepare(case.module, Policy.preset(recipe))
    lifecycle.calibrate(q, [case.call], progress=False)
    no_data = [site.path for site in q.uncalibrated_sites()]
    lifecycle.convert(q, unused=[literal(path) for path in no_data])
    return q, len(no_data)


def _compared(expected: list[Tensor], got: list[Tensor]) -> dict[str, Any]:
    """The outputs of both; a wrapper may return more (HF leaves attention weights out of some outputs), never less."""
    pairs = list(zip(expected, got, strict=False))
    match = len(got) >= len(expected) > 0 and all(x.shape == y.shape for x, y in pairs)
    floats = [(x, y) for x, y in pairs if x.shape == y.shape and x.is_floating_point()]
    found = [difference(x, y)[0] for x, y in floats]
    return {
        "shapes_match": match,
        "finite": all(bool(torch.isfinite(y).all()) for y in got if y.is_floating_point()),
        "mean_abs": max((mean_abs_diff(x, y) for x, y in floats if x.numel()), default=None),
        "max_abs": max((each.peak for each in found), default=None),
        "peir": max((each.peir for each in found if each.peir is not None), default=None),
        "sqnr": min((each.sqnr for each in found if each.sqnr is not None), default=None),
    }


def _exported(case: Case, q: QModule, outputs: int, result: Result, folder: Path | None) -> tuple[Result, list[str]]:
    with torch.no_grad():
        family = None if case.family is None else models.by_name(case.family)
        graph = alone(q, case.arguments, case.batch, outputs, family)
    program = exporter.export(q, graph.profile)
    missing, data = program.missing_qparams(), program.to_bytes()
    faults = [str(fault) for fault in circle.check(data)]
    specs = [site.spec for site in q.all_sites()]
    if missing and specs and None not in specs:  # without sites, or by the recipe, floats are intended
        faults.append(f"{len(missing)} tensors without qparams, such as '{missing[0]}'")
    artifact = None
    if folder is not None:
        artifact = folder / f"{case.name.replace('/', '_')}.circle"
        program.save(artifact)
    names = [tensor.name for tensor in program.inputs]
    report = verify.compare(program, None, [graph.inputs[name] for name in names])
    faults += op_faults(report)
    steps = [out.max_lsb for out in report.outputs if out.max_lsb is not None]
    elements = sum(out.elements for out in report.outputs)
    result = dataclasses.replace(
        result,
        missing=len(missing),
        op_lsb=report.max_lsb,
        output_lsb=max(steps, default=None),
        output_equal=1 - sum(out.unequal for out in report.outputs) / elements if elements else None,
        operators=len(report.operators) + report.unchecked,
        bytes=len(data),
        artifact=None if artifact is None else str(artifact),
    )
    return result, faults


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
