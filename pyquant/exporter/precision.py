# SPDX-License-Identifier: Apache-2.0
"""Models in bfloat16 or float16: eager computes more coarsely than the file, and the warning about it.

It owns the warning. Which type a tensor of the file has is decided in lower/.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch

from pyquant.exporter.plan import FLOATS, Graph
from pyquant.exporter.tracing import Traced

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ADVICE = "q32 = copy.deepcopy(q).float()"
_NAMED = 3  # graphs that a warning names


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


def warn_low_precision(programs: Iterable[tuple[Graph, Traced]], stacklevel: int = 2) -> None:
    """One LowPrecisionWarning for all graphs of which eager computes in less than float32; none for none."""
    low = [(graph, dtype) for graph, traced in programs if (dtype := eager_dtype(traced)) != "float32"]
    if not low:
        return
    names = ", ".join(f"'{graph.name}'" for graph, _ in low[:_NAMED])
    names += f" and {len(low) - _NAMED} more" if len(low) > _NAMED else ""
    several = len(low) > 1
    if types := sorted({dtype for graph, _ in low for dtype in low_floats(graph)}):
        text = (
            f"{'the graphs' if several else 'the graph'} {names} {'have' if several else 'has'} {' and '.join(types)} "
            f"tensors, which the runtimes do not compute; cast to float32 first: {ADVICE}, then export q32 (a profile "
            "that names dtypes names float32)"
        )
    else:
        text = (
            f"eager computes {names} in {' and '.join(sorted({dtype for _, dtype in low}))}, the file in float32 and "
            "integers, so that eager is a coarse simulation (tens of steps of 16 bits in each operator); for the exact "
            f"one, {ADVICE}, export q32 and compare with it (tables that the adapter computes are then float32 too)"
        )
    warnings.warn(text, LowPrecisionWarning, stacklevel=stacklevel + 1)
