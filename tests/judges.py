# SPDX-License-Identifier: Apache-2.0
"""Two runtimes judge a file: pyquant's own, whose integers are exact, and TICO's, which adds up in float32 as eager.

Where float32 misses a step that the real number is near, the two differ by one; so bit for bit, eager is compared with
TICO, and pyquant's own runner operator by operator with a step to spare.
"""

from __future__ import annotations

from torch import nn

from pyquant.exporter.program import CircleProgram
from pyquant.verify import Report, compare
from pyquant.verify.runtimes._inputs import Inputs
from pyquant.verify.tolerance import FLOAT_RELATIVE

#: Elements that may differ by a step, op by op, where eager adds up in float32.
FLIPS = 0.01


def judged(prog: CircleProgram, q: nn.Module | None, inputs: Inputs) -> Report:
    """TICO's report, after every operator of `prog` was within a step of eager in pyquant's own runner."""
    own = compare(prog, q, inputs)
    for op in own.operators:
        if op.max_lsb is None:
            assert op.relative <= FLOAT_RELATIVE, op
        else:
            assert op.max_lsb <= 1, op
    graded = [op for op in own.operators if op.max_lsb is not None]
    unequal, total = sum(op.unequal for op in graded), sum(op.elements for op in graded)
    assert unequal <= max(2, FLIPS * total), own
    return compare(prog, q, inputs, runtime="tico")
