# SPDX-License-Identifier: Apache-2.0
"""A graph whose inputs have one open length: which dimensions of which tensors depend on it.

It owns one rule for each operator that works at any length. The graph was traced at one length; an operator without a
rule is an error, since its shapes and constants may be valid for that length only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyquant.errors import ExportError
from pyquant.exporter.plan import Graph, Op, Tensor

Axes = frozenset[int]
#: Each element of the result depends on the elements at its own index (broadcast), for any shape.
_ELEMENTWISE = (
    *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "NEG", "ABS", "EXP", "SQRT", "RSQRT", "SQUARE"),
    *("GELU", "LOGISTIC", "TANH", "RELU", "RELU6", "CAST", "QUANTIZE", "DEQUANTIZE"),
)
#: The same along every axis but the last.
_BY_ROWS = ("SOFTMAX", "RMS_NORM")


def open_lengths(graph: Graph, axes: Mapping[str, int]) -> Graph:
    """`graph` with a shape signature: -1, and 1 in the shape, along `axes[input]` and all that depends on them.

    All open axes have one length. Raises ExportError for an operator without a rule, and for one that
    joins an open axis with one of a fixed size.
    """
    if not axes:
        return graph
    open_axes: list[Axes] = [frozenset() for _ in graph.tensors]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.name in axes:
            open_axes[index] = frozenset({axes[tensor.name]})
    for op in graph.operators:
        if not any(open_axes[index] for index in op.inputs if index >= 0):
            continue
        rule = _RULES.get(op.op)
        if rule is None:
            raise ExportError(
                f"{op.op} -> '{graph.tensors[op.outputs[0]].name}' ({op.where}) depends on an input of open length, "
                f"and there is no rule for that; {', '.join(sorted(_RULES))} have one. Export fixed lengths instead"
            )
        tensors = [None if index < 0 else graph.tensors[index] for index in op.inputs]
        given = [frozenset() if index < 0 else open_axes[index] for index in op.inputs]
        open_axes[op.outputs[0]] = rule(op, tensors, given, graph.tensors[op.outputs[0]])
    return graph.replace(
        tensors=tuple(_opened(tensor, own) for tensor, own in zip(graph.tensors, open_axes, strict=True)),
    )


def _opened(tensor: Tensor, axes: Axes) -> Tensor:
    if not axes:
        return tensor
    return tensor.replace(
        shape=tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape)),
        signature=tuple(-1 if axis in axes else size for axis, size in enumerate(tensor.shape)),
    )


Rule = Callable[[Op, list[Tensor | None], list[Axes], Tensor], Axes]


def _elementwise(op: Op, tensors: list[Tensor | None], given: list[Axes], out: Tensor) -> Axes:
    rank = len(out.shape)
    found = frozenset(
        axis + rank - len(t.shape) for t, axes in zip(tensors, given, strict=True) if t is not None for axis in axes
    )
    for tensor, axes in zip(tensors, given, strict=True):
        if tensor is None:
            continue
        shift = rank - len(tensor.shape)
        for axis in found:
            if axis >= shift and axis - shift not in axes and tensor.shape[axis - shift] != 1:
                raise ExportError(
                    f"{op.op} -> '{out.name}' ({op.where}): axis {axis} is of open length, but '{tensor.name}' has "
                    f"the fixed size {tensor.shape[axis - shift]} there; give that input an open length too"
                )
    return found


def _by_rows(op: Op, tensors: list[Tensor | None], given: list[Axes], out: Tensor) -> Axes:
    return _no_last(op, given[0], len(out.shape), out)


def _fully_connected(op: Op, tensors: list[Tensor | None], given: list[Axes], out: Tensor) -> Axes:
    x = tensors[0]
    assert x is not None
    if any(given[1:]) or not op.options.get("keep_num_dims"):
        raise ExportError(f"{op.op} -> '{out.name}' ({op.where}) accepts an open length only in the rows of its input")
    return _no_last(op, given[0], len(x.shape), out)


def _gather(op: Op, tensors: list[Tensor | None], given: list[Axes], out: Tensor) -> Axes:
    table, indices = tensors[:2]
    assert table is not None
    assert indices is not None
    at = int(op.options["axis"]) % len(table.shape)
    if at in given[0] or op.options.get("batch_dims"):
        raise ExportError(f"{op.op} -> '{out.name}' ({op.where}) looks up along an axis of open length")
    wider = len(indices.shape) - 1
    return frozenset({*(axis + at for axis in given[1]), *(axis + wider * (axis > at) for axis in given[0])})


def _no_last(op: Op, axes: Axes, rank: int, out: Tensor) -> Axes:
    if rank - 1 in axes:
        raise ExportError(f"{op.op} -> '{out.name}' ({op.where}) computes along its last axis, which is of open length")
    return axes


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_BY_ROWS, _by_rows),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
}
