# SPDX-License-Identifier: Apache-2.0
"""The fake_quantize nodes, the source of all qparams of a file.

Most become the qparams of their operand's tensor; QUANTIZE is written when that tensor has another grid.
"""

from __future__ import annotations

from typing import Any

from pyquant.exporter.context import Context
from pyquant.exporter.grid import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from pyquant.exporter.registry import lowers
from pyquant.exporter.values import Const, Ref


@lowers(FAKE_QUANTIZE)
def fake_quantize(cx: Context, x: Ref | Const, *_: Any, **__: Any) -> Ref | Const:
    return cx.quantize(x, cx.grids.of[cx.node])


@lowers(FAKE_QUANTIZE_BIAS)
def fake_quantize_bias(cx: Context, *_: Any, **__: Any) -> None:
    raise cx.error("the bias of a linear is a constant; this one is computed from the graph's inputs")
