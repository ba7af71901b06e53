# SPDX-License-Identifier: Apache-2.0
"""Models in bfloat16 or float16: eager computes more coarsely than the file, and the warning about it.

It owns the warning. Which type a tensor of the file has is decided in lower/.
"""

from __future__ import annotations

import warnings

import torch

from pyquant.exporter.plan import FLOATS, Graph
from pyquant.exporter.tracing import Traced

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ADVICE = "q32 = copy.deepcopy(q).float()"


class LowPrecisionWarning(UserWarning):
    """The exported model computes in bfloat16 or float16, so eager differs from what the file computes."""


def eager_dtype(traced: Traced) -> str:
    """The float type that the traced model computes in: the low one where it has any, else float32."""
    counts = dict.fromkeys(LOW, 0)
    for node in traced.nodes:
        value = node.meta.get("val")
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, torch.Tensor):
                for name, dtype in LOW.items():
                    counts[name] += part.dtype is dtype
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] else "float32"


def low_floats(graph: Graph) -> list[str]:
    """The low float types that tensors of the file have, sorted. No runtime of compare() computes in them."""
    return sorted({tensor.dtype for tensor in graph.tensors} & (FLOATS - {"float32"}))


def warn_low_precision(graph: Graph, traced: Traced, stacklevel: int = 3) -> None:
    """Warn with LowPrecisionWarning when eager computes in less than float32."""
    dtype = eager_dtype(traced)
    if dtype == "float32":
        return
    if low := low_floats(graph):
        text = (
            f"the graph '{graph.name}' has {' and '.join(low)} tensors, which the runtimes do not compute; cast to "
            f"float32 first: {ADVICE}, then export q32 (a profile that names dtypes names float32)"
        )
    else:
        text = (
            f"eager computes '{graph.name}' in {dtype}, the file in float32 and integers, so that eager is a coarse "
            f"simulation (tens of steps of 16 bits in each operator); for the exact one, {ADVICE}, export q32 and "
            "compare with it (tables that the adapter computes are then float32 too)"
        )
    warnings.warn(text, LowPrecisionWarning, stacklevel=stacklevel + 1)
