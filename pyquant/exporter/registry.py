# SPDX-License-Identifier: Apache-2.0
"""The one table from ATen operator to lowering function, and the list of operators that have none.

It owns the names. Each function stands with its family in lower/.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.fx import Node

from pyquant.errors import ExportError
from pyquant.exporter.grid import FAKE_QUANTIZE
from pyquant.exporter.tracing import location_of


class Kind(enum.Enum):
    """What an operator does to grids. Quantizing before a MOVE or a JOIN gives what quantizing after it gives."""

    COMPUTE = "compute"  # the result needs a grid of its own
    MOVE = "move"  # the values of the first argument, at other indices
    JOIN = "join"  # values chosen from several (cat, where) or by order (relu, maximum): they need one grid


@dataclass(frozen=True)
class Lowering:
    target: str
    lower: Callable[..., Any]
    kind: Kind


LOWERINGS: dict[str, Lowering] = {}
F = TypeVar("F", bound=Callable[..., Any])
GETITEM = "getitem"
CASTS = ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten._to_copy.default", "aten.type_as.default")

PADS = ("aten.pad.default", "aten.constant_pad_nd.default")

_ADVICE = {
    "aten.scaled_dot_product_attention.default": "use eager attention (matmul, softmax, matmul), with sites on each",
    "aten.conv1d.default": "write it as a conv2d of height 1 (wrap/conv.py does)",
    "aten.conv2d.padding": "give the padding as numbers (wrap/conv.py does)",
    "aten.conv3d.default": "a patch convolution whose kernel equals its stride is a linear: reshape, then aten.linear",
    "aten.index_put.default": "use an index input and a gather (aten.index_select) instead of writing in place",
    "aten.masked_scatter.default": "use an index input and a gather (aten.index_select) instead",
    "aten.cos.default": "precompute rotary tables in the export adapter",
    "aten.sym_size.int": "a size here depends on data; take it from the profile",
    "aten.nonzero.default": "its shape depends on data; pass indices as an input",
}


def lowers(*targets: str, kind: Kind = Kind.COMPUTE) -> Callable[[F], F]:
    """Register a lowering function `f(cx, *args, **kwargs)`, called with the operator's own arguments."""

    def register(function: F) -> F:
        for target in targets:
            assert target not in LOWERINGS, f"{target} has a lowering already: {LOWERINGS[target].lower.__name__}"
            LOWERINGS[target] = Lowering(target, function, kind)
        return function

    return register


def target_of(node: Node) -> str:
    """`aten.linear.default`, `pyquant.fake_quantize.default`, `getitem` ..."""
    return GETITEM if node.target is operator.getitem else str(node.target)


def names() -> list[str]:
    """Every operator that can be lowered, sorted."""
    return sorted(LOWERINGS)


def is_move(target: str) -> bool:
    """True for operators whose result has the values of their first argument and no others."""
    return target in LOWERINGS and LOWERINGS[target].kind is Kind.MOVE


def kind_of(node: Node) -> Kind:
    rule = LOWERINGS.get(target_of(node))
    return rule.kind if rule else Kind.COMPUTE


def refuse_unknown(nodes: Iterable[Node], known: Collection[Node]) -> None:
    """Raise one ExportError that lists every operator without a lowering: name, module path, source line."""
    lines: dict[str, None] = {}
    advice: dict[str, None] = {}
    for node in nodes:
        if node.op in ("placeholder", "output") or node in known:
            continue
        target = target_of(node)
        if node.op == "call_function" and target in LOWERINGS:
            continue
        lines[f"  {target} in {location_of(node)}"] = None
        if target in _ADVICE:
            advice[f"  {target}: {_ADVICE[target]}"] = None
        elif getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            advice[f"  {target}: a static graph has no state; return a new value instead of changing one"] = None
    if lines:
        text = f"{len(lines)} operator(s) have no Circle form here:\n" + "\n".join(lines)
        if advice:
            text += "\nadvice:\n" + "\n".join(advice)
        raise ExportError(f"{text}\nRewrite them with the operators of pyquant.exporter.registry.names().")


def is_fake_quantize(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) == FAKE_QUANTIZE
