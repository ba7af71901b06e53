# SPDX-License-Identifier: Apache-2.0
"""Float graphs of every Gemma4 vision wrapper on the real runtime onert, against HF's own forward."""

from __future__ import annotations

import sys

import pytest
import torch
from gemma4_tiny import CASES, PLAIN
from test_gemma4_wrappers import adapter_of, inputs_of, quantized

import pyquant
from pyquant.verify.runtimes import onert

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
pytestmark = pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")

EVERY = [(name, "padded") for name in CASES] + [("model_plain", "two"), ("model_clipped_standardized", "two")]


@pytest.mark.parametrize(("name", "batch"), EVERY, ids=["-".join(case) for case in EVERY])
def test_the_float_file_computes_what_hf_computes(name, batch):
    fp, q = quantized(name, "float")
    given, case = inputs_of(name, batch, fp), CASES[name]
    program = pyquant.export(adapter_of(name, batch, q, given), target="onert")
    with torch.no_grad():
        expected = case.pick(fp(**given))
    (got,) = onert.run(program, [given[case.first]]).values()
    error = float((got - expected.reshape(got.shape)).abs().max())
    assert error <= 1e-4 * max(1.0, float(expected.abs().max())), error


def test_the_plain_wrappers_are_among_them():
    assert set(PLAIN) <= {name for name, _ in EVERY}
