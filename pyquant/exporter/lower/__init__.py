# SPDX-License-Identifier: Apache-2.0
"""The lowering: a traced program, node by node, into a plan.Graph. One file per family of operators.

It owns the order of nodes, graph inputs and graph outputs. What each operator becomes is its family's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from pyquant.errors import ExportError
from pyquant.exporter.absent import Absent
from pyquant.exporter.builder import Builder
from pyquant.exporter.context import Context
from pyquant.exporter.fold import fold
from pyquant.exporter.lower import (
    activation,
    alias,
    arith,
    comparison,
    conv,
    gather,
    join,
    linear,
    move,
    norm,
    quant,
    reduce,
)
from pyquant.exporter.plan import DTYPES, Graph, Tensor
from pyquant.exporter.propagate import propagate
from pyquant.exporter.registry import LOWERINGS, refuse_unknown, target_of
from pyquant.exporter.tracing import Traced, location_of, static_shape
from pyquant.exporter.values import Const, Ref

FAMILIES = (activation, alias, arith, comparison, conv, gather, join, linear, move, norm, quant, reduce)


def lower(traced: Traced, metadata: Mapping[str, str], absent: Absent | None = None) -> Graph:
    """The Circle graph of a traced program, before passes; `absent` as of fold. Raises ExportError for what has no
    Circle form."""
    nodes = traced.nodes
    folded = fold(traced, absent)
    refuse_unknown(nodes, folded.keys())
    cx = Context(traced, folded, propagate(nodes, folded), Builder([*traced.inputs.values(), *traced.outputs]))
    inputs: list[Ref] = []
    outputs: list[Ref] = []
    for node in nodes:
        if node in cx.values:
            continue
        cx.at(node)
        if node.op == "placeholder":
            cx.values[node] = _input(cx, traced.inputs[node.name])
            inputs.append(cx.values[node])
        elif node.op == "output":
            outputs = _outputs(cx, inputs, _flat(node.args[0]))
        else:
            cx.values[node] = _call(cx, node)
    return cx.build.graph(traced.name, inputs, outputs, metadata)


def _input(cx: Context, name: str) -> Ref:
    node, want = cx.node, cx.want
    fake = node.meta["val"]
    if fake.dtype not in DTYPES:
        raise ExportError(f"input '{name}' is {fake.dtype}; Circle has {', '.join(DTYPES.values())}")
    note = cx.grids.notes.get(node, "nothing reads it") if fake.dtype.is_floating_point and want is None else ""
    return cx.build.add(
        Tensor(
            name,
            want.dtype if want else DTYPES[fake.dtype],
            static_shape(fake, node),
            want,
            origin=node.name,
            where=location_of(node),
            note=note,
        )
    )


def _call(cx: Context, node: Node) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: cx.values[source])
    value = LOWERINGS[target_of(node)].lower(cx, *args, **kwargs)
    if isinstance(value, Ref) and cx.build.tensors[value.index].origin is None:
        cx.build.update(value, origin=node.name)
    return value


def _outputs(cx: Context, inputs: list[Ref], values: list[Node]) -> list[Ref]:
    """Each output is a tensor of its own with the user's name; inputs, constants and second uses are copied."""
    outputs: list[Ref] = []
    for node, name in zip(values, cx.traced.outputs, strict=True):
        value = cx.values.get(node)
        if not isinstance(value, Ref | Const):
            raise ExportError(f"output '{name}' is {node!r}, no tensor; an adapter returns tensors")
        if isinstance(value, Const) or value in inputs or value in outputs:
            shape = cx.shape(value)
            value = cx.emit(
                "RESHAPE",
                [value, cx.ints(shape, "shape")],
                {"new_shape": list(shape)},
                shape=shape,
                dtype=cx.dtype(value),
                quant=cx.quant(value),
            )
            cx.build.update(value, origin=node.name)
        cx.build.update(value, name=name)
        outputs.append(value)
    return outputs


def _flat(value: Any) -> list[Any]:
    return [part for item in value for part in _flat(item)] if isinstance(value, list | tuple) else [value]
