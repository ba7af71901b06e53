# SPDX-License-Identifier: Apache-2.0
"""The tolerances of "Circle = eager", in one place, and the assertion of the tests.

It owns the numbers of design.md section 5 (Fidelity). Measuring is fidelity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyquant.metrics import peir
from pyquant.verify.fidelity import compare, eager_outputs
from pyquant.verify.report import Report
from pyquant.verify.runtimes import TraceableName

#: A rounding flip: one step of the output grid. Op by op no element may differ by more.
MAX_LSB = 1.0
#: Share of elements that may differ at all, op by op; and by more than a step, end to end in a single layer.
EXCEPTIONAL_SHARE = 1e-3
#: Deep models: PEIR(eager, circle) against PEIR(float, eager).
PEIR_SHARE = 0.1
#: Float operators: largest difference relative to the largest value.
FLOAT_RELATIVE = 1e-5


def fidelity(
    prog: Any,
    q: Any,
    inputs: Any,
    *,
    reference: Mapping[str, Any] | None = None,
    runtime: TraceableName = "native",
) -> Report:
    """Assert that the file of `prog` computes in `runtime` what eager `q` computes, and return the report.

    Op by op always. End to end as a single layer (one step, on 99.9 % of the elements), or, with the float outputs by
    name as `reference`, as a deep model (a tenth of the error that quantization itself makes). Raises AssertionError.
    """
    report = compare(prog, q, inputs, runtime=runtime)
    faults = op_faults(report)
    faults += layer_faults(report) if reference is None else deep_faults(prog, q, inputs, reference, report)
    if faults:
        raise AssertionError("the Circle file differs from the eager model:\n  " + "\n  ".join(faults) + f"\n{report}")
    return report


def op_faults(report: Report) -> list[str]:
    """What is wrong op by op; empty when every operator is within the tolerances."""
    faults = [] if report.exported_equal else ["the exported program does not equal the eager model bit for bit"]
    for op in report.operators:
        if op.max_lsb is None and op.relative > FLOAT_RELATIVE:
            faults.append(f"operator {op.index} {op.op} -> '{op.tensor}': relative difference {op.relative:.3g}")
        if op.max_lsb is not None and op.max_lsb > MAX_LSB:
            faults.append(f"operator {op.index} {op.op} -> '{op.tensor}': {op.max_lsb:.0f} LSB")
    quantized = [op for op in report.operators if op.max_lsb is not None]
    unequal, total = sum(op.unequal for op in quantized), sum(op.elements for op in quantized)
    if unequal > allowed(total):
        faults.append(f"{unequal} of {total} elements differ op by op, allowed {allowed(total)}")
    return faults


def layer_faults(report: Report) -> list[str]:
    """What is wrong end to end for a single layer."""
    faults = []
    for out in report.outputs:
        if out.max_lsb is None and out.peir > FLOAT_RELATIVE:
            faults.append(f"output '{out.name}': PEIR {out.peir:.3g} of a float output")
        if out.beyond > int(EXCEPTIONAL_SHARE * out.elements):
            faults.append(
                f"output '{out.name}': {out.max_lsb:.0f} LSB, {out.beyond} of {out.elements} elements beyond 1"
            )
    return faults


def deep_faults(prog: Any, q: Any, inputs: Any, reference: Mapping[str, Any], report: Report) -> list[str]:
    """What is wrong end to end for a deep model, relative to the error against the float outputs `reference`.

    One step of the output grid is always allowed: on 8 bits that step alone is a PEIR of 1/255.
    """
    eager = eager_outputs(prog, q, inputs)
    faults = []
    for out in report.outputs:
        quantization = peir(reference[out.name], eager[out.name])
        if out.peir > PEIR_SHARE * quantization and (out.max_lsb is None or out.max_lsb > MAX_LSB):
            faults.append(
                f"output '{out.name}': PEIR {out.peir:.3g}, but quantization itself makes only {quantization:.3g}"
            )
    return faults


def allowed(elements: int) -> int:
    """How many of `elements` may differ by a rounding flip; at least one, so that a small tensor may have a flip."""
    return max(1, int(EXCEPTIONAL_SHARE * elements))
