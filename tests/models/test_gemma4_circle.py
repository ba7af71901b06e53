# SPDX-License-Identifier: Apache-2.0
"""Circle = eager for every Gemma4 vision wrapper, judged by TICO's reference runtime on the written bytes."""

from __future__ import annotations

import pytest
import torch
from gemma4_tiny import CASES, PLAIN, STATIC
from test_gemma4_wrappers import adapter_of, inputs_of, quantized

import pyquant
from pyquant.verify.tolerance import deep_faults, layer_faults, op_faults
from tests.judges import judged

# At 16 bits one step is 3e-5 of the range, near float32's own rounding in a sum: flips of one operator reach the next,
# so that wrappers of several linears are judged as deep models there.
DEEP = {
    "w8a8": [name for name in CASES if name.startswith("model") or name == "encoder"],
    "w4a16": [name for name in CASES if name.startswith(("model", "encoder", "attention", "mlp"))],
}
EVERY = [(name, "w8a8", "padded") for name in CASES]
EVERY += [(name, "w4a16", "two") for name in CASES if "clipped" in name or name == "pooler"]


@pytest.mark.parametrize(("name", "preset", "batch"), EVERY, ids=["-".join(case) for case in EVERY])
def test_the_file_computes_what_eager_computes(name, preset, batch):
    fp, q = quantized(name, preset)
    given, case = inputs_of(name, batch, fp), CASES[name]
    program = pyquant.export(adapter_of(name, batch, q, given))
    inputs = [given[case.first]]
    report = judged(program, None, inputs)
    assert op_faults(report) == []
    if name in DEEP[preset]:
        with torch.no_grad():
            (output,) = program.outputs
            reference = {output.name: case.pick(fp(**given))}
        assert deep_faults(program, None, inputs, reference, report) == []
    else:
        assert layer_faults(report) == []


def test_the_table_covers_every_static_wrapper():
    assert set(STATIC) | set(PLAIN) == {name for name, _, _ in EVERY}
