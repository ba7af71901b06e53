# SPDX-License-Identifier: Apache-2.0
"""Constant folding: every node that depends only on parameters, buffers and numbers becomes a lazy Const.

A moved quantized constant keeps its integers and its qparams. What a Const becomes in the file is context.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument, map_arg

from pyquant import ops
from pyquant.errors import ExportError
from pyquant.exporter.absent import Absent, require_values
from pyquant.exporter.grid import (
    BLOCKS,
    DEQUANTIZE,
    DEQUANTIZE_BLOCKS,
    FAKE_QUANTIZE,
    FAKE_QUANTIZE_BIAS,
    FAKE_QUANTIZE_BLOCKS,
    STORAGE,
    bias_quant,
    quant_of,
)
from pyquant.exporter.plan import Quant
from pyquant.exporter.registry import CASTS, GETITEM, PADS, is_move, target_of
from pyquant.exporter.tracing import Traced, location_of, readable, static_shape
from pyquant.exporter.values import Const, Elsewhere, Held, Stored, blocks, dequantize_from, integers, packed

Folded = dict[Node, Any]  # node -> Const, or a list of them

_GROWING = {"aten.expand.default", "aten.repeat.default", "aten.repeat_interleave.self_int"}
_MAX_GROWTH = 4096  # elements up to which an expanded constant is stored expanded
_SITE_SCALE = re.compile(r"(?:(.*)\.)?sites\.(\w+)\.scale")
_SITE_BLOCKS = re.compile(r"(?:(.*)\.)?sites\.(\w+)\.blocks")
_IN_PLACE_ALIASES = {"aten.detach_.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default"}


def fold(traced: Traced, absent: Absent | None = None) -> Folded:
    """All constant nodes of a graph; `absent` reads parameters that are not in memory. Raises ExportError for one on
    the meta device."""
    folded: Folded = {}
    for node in traced.nodes:
        if node.op == "placeholder" and node.name in traced.lifted:
            path, tensor = traced.lifted[node.name]
            name, shape, here = readable(path), tuple(tensor.shape), location_of(node)
            require_values(name, tensor)
            read = None if absent is None else absent.of(tensor)
            touch = None if absent is None else absent.touch
            source = Held(name, tensor, touch) if read is None else Elsewhere(name, tensor, read)
            folded[node] = Const(name, shape, tensor.dtype, source, here, origin=source.origin)
        elif node.op == "call_function" and all(source in folded for source in node.all_input_nodes):
            constant = _fold_call(node, folded)
            if constant is not None:
                folded[node] = constant
    return folded


def _fold_call(node: Node, folded: Folded) -> Any:
    target = target_of(node)
    if target == GETITEM:
        return folded[_node(node.args[0])][node.args[1]]
    if target in _IN_PLACE_ALIASES:
        return folded[_node(node.args[0])]
    if target == FAKE_QUANTIZE:
        return _fold_fake_quantize(node, folded)
    if target == DEQUANTIZE:
        return _fold_dequantize(node, folded)
    if target == FAKE_QUANTIZE_BIAS:
        return _fold_bias(node, folded)
    if target == FAKE_QUANTIZE_BLOCKS:
        return _fold_blocks(node, folded)
    if target == DEQUANTIZE_BLOCKS:
        return _fold_stored_blocks(node, folded)
    if not target.startswith("aten.") or node.target._schema.is_mutable:  # type: ignore[union-attr]
        return None
    if target in _GROWING and _numel(node) > max(_numel(_node(node.args[0])), _MAX_GROWTH):
        return None
    if target in PADS and getattr(folded[_node(node.args[0])], "quant", None) is not None:
        return None  # its zeros are the zero point
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return _call(node, folded, None)
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        return [_call(node, folded, index) for index in range(len(value))]
    return None


def _call(node: Node, folded: Folded, part: int | None) -> Const:
    fake = node.meta["val"] if part is None else node.meta["val"][part]
    target = target_of(node)
    data = folded[_node(node.args[0])] if is_move(target) else None
    shape, here = static_shape(fake, node), location_of(node)
    name = f"{here.module}.{node.name}" if here.module else node.name

    def real() -> Tensor:
        return _run(node, folded, part)

    if isinstance(data, Const) and data.quant is not None and target in CASTS:
        if fake.dtype.is_floating_point:  # the file has the integers, for any float type that simulates them
            same = Const(data.name, shape, fake.dtype, real, here, data.quant, data.ints, data.make_packed)
            same.origin = data.origin
            return same
    elif isinstance(data, Const) and data.quant is not None:
        quant = _moved_quant(node, data, part)
        return Const(
            data.name,
            shape,
            fake.dtype,
            real,
            here,
            quant,
            lambda: _run(node, folded, part, {node.args[0]: data.ints()}),
        )
    if isinstance(data, Const) and target in CASTS:  # a bfloat16 model's constants are named as the float32 model's
        origin = data.origin if data.block is None else None
        cast = origin and origin.then(fake.dtype, lambda rows, _: rows.to(fake.dtype))
        return Const(data.name, shape, fake.dtype, real, here, origin=cast)
    return Const(name, shape, fake.dtype, real, here)


def _run(node: Node, folded: Folded, part: int | None, instead: Mapping[Argument, Tensor] | None = None) -> Tensor:
    """Run one node on its constants; `instead` replaces some of them (integers for real values)."""
    given = instead or {}
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: given[n] if n in given else folded[n].value())
    with torch.no_grad():
        out = node.target(*args, **kwargs)  # type: ignore[operator]
    result = out if part is None else out[part]
    assert isinstance(result, Tensor), f"{node.target} gave no tensor"
    return result


def _moved_quant(node: Node, data: Const, part: int | None) -> Quant:
    """The qparams of a moved constant.

    Per channel, the move is applied to the channel indices to find where each channel goes.
    """
    quant = data.quant
    assert quant is not None
    if quant.axis is None:
        return quant
    view = [1] * len(data.shape)
    view[quant.axis] = -1
    channels = torch.arange(data.shape[quant.axis], dtype=torch.int32, device="cpu").view(view).expand(data.shape)
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: channels if n is node.args[0] else n)
    moved = node.target(*args, **kwargs)  # type: ignore[operator]
    moved = moved if part is None else moved[part]
    for axis in range(moved.dim()):
        line = moved[tuple(slice(None) if d == axis else slice(0, 1) for d in range(moved.dim()))]
        if torch.equal(line.expand_as(moved), moved):
            index = line.reshape(-1).tolist()
            scale, zero_point = tuple(quant.scale[i] for i in index), tuple(quant.zero_point[i] for i in index)
            return Quant(quant.dtype, scale, zero_point, axis, quant.qmin, quant.qmax)
    raise ExportError(
        f"{node.target} mixes the channels of '{data.name}', which is quantized per channel (axis {quant.axis}), at "
        f"{location_of(node)}; reshape it before its site, or quantize it per tensor"
    )


def _fold_fake_quantize(node: Node, folded: Folded) -> Const:
    source, scale, zero_point, axis, group, qmin, qmax = schema_args(node)
    data = folded[source]
    quant = quant_of(
        folded[scale].value(), folded[zero_point].value(), axis, group, qmin, qmax, node, site_of(scale, node, folded)
    )
    if data.quant == quant:
        return data  # type: ignore[no-any-return]
    const = Const(
        data.name, data.shape, data.dtype, lambda: dequantize_from(const.ints(), quant), location_of(node), quant
    )
    four = quant.dtype in ("int4", "uint4")
    if data.stored is not None and data.stored.grid == (scale, zero_point, axis, group):
        const.make_ints, stored = data.stored.ints, data.stored.origin
        const.origin = stored and stored.then(quant, lambda rows, _: ops.pack_int4(rows.cpu()) if four else rows)
        return const

    def grid(rows: int | None = None) -> tuple[Tensor, Tensor]:
        own = slice(rows if quant.axis == 0 else None)
        scales, zero_points = folded[scale].value(), folded[zero_point].value()
        return (scales[own], zero_points[own]) if quant.axis == 0 else (scales, zero_points)

    const.make_ints = lambda: integers(data.value(), quant, *grid())
    if four:
        const.make_packed = lambda: packed(data.value(), quant, *grid())
    if data.quant is None and data.block is None and data.origin is not None:
        store = packed if four else integers
        const.origin = data.origin.then(quant, lambda rows, n: store(rows, quant, *grid(n)))
    return const


def _fold_dequantize(node: Node, folded: Folded) -> Const:
    """A weight that exists as integers only; quantized on the same grid, it is these integers in the file."""
    source, scale, zero_point, axis, group = schema_args(node)
    data, grid = folded[source], (scale, zero_point, axis, group)

    def make() -> Tensor:
        return ops.dequantize(data.value(), folded[scale].value(), folded[zero_point].value(), axis, group)

    owner = _SITE_SCALE.fullmatch(folded[scale].name)
    name = data.name if owner is None else f"{owner[1]}.{owner[2]}" if owner[1] else owner[2]
    return Const(name, data.shape, torch.float32, make, location_of(node), stored=Stored(data.value, grid, data.origin))


def _fold_bias(node: Node, folded: Folded) -> Const:
    source, scale, bits = schema_args(node)
    data, scale_value = folded[source], folded[scale].value()
    quant = bias_quant(scale_value, bits)
    return Const(
        data.name,
        data.shape,
        data.dtype,
        lambda: ops.fake_quantize_bias(data.value(), scale_value, bits),
        location_of(node),
        quant,
        lambda: ops.quantize_bias(data.value(), scale_value, bits).to(STORAGE[quant.dtype]),
    )


def _fold_blocks(node: Node, folded: Folded) -> Const:
    """In the file this constant is its blocks; a move of it is a plain float constant again."""
    source, bits = schema_args(node)
    data = folded[source]
    block = next(name for name, width in BLOCKS.items() if width == bits)
    value = lambda: ops.fake_quantize_blocks(data.value(), bits)  # noqa: E731
    const = Const(data.name, data.shape, data.dtype, value, location_of(node), block=block)
    const.make_packed = lambda: blocks(data.value(), bits)
    if data.quant is None and data.block is None and data.origin is not None:
        const.origin = data.origin.then(block, lambda rows, _: blocks(rows, bits))
    return const


def _fold_stored_blocks(node: Node, folded: Folded) -> Const:
    """A weight whose blocks exist already: the file has them."""
    source, bits = schema_args(node)
    data = folded[source]
    block = next(name for name, width in BLOCKS.items() if width == bits)
    owner = _SITE_BLOCKS.fullmatch(data.name)
    name = data.name if owner is None else f"{owner[1]}.{owner[2]}" if owner[1] else owner[2]
    shape = static_shape(node.meta["val"], node)
    value = lambda: ops.dequantize_blocks(data.value(), bits)  # noqa: E731
    const = Const(name, shape, torch.float32, value, location_of(node), block=block, origin=data.origin)
    const.make_packed = data.value
    return const


def site_of(scale: Argument, node: Node, folded: Folded) -> str:
    """The owner of a grid, for messages: the site whose scale it is ("site 'layers.0.fc:weight'"), else the module."""
    constant = folded.get(scale) if isinstance(scale, Node) else None
    if isinstance(constant, Const) and (owner := _SITE_SCALE.fullmatch(constant.name)):
        return f"site '{owner[1] or ''}:{owner[2]}'"
    module = location_of(node).module
    source = folded.get(node.args[0]) if isinstance(node.args[0], Node) else None
    if isinstance(source, Const):
        return f"constant '{source.name}'"
    return f"a value of module '{module}'" if module else "a value of the root module"


def schema_args(node: Node) -> list[Any]:
    """All arguments in schema order, keywords included."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(argument.name, argument.default_value) for argument in schema.arguments]


def _node(value: object) -> Node:
    assert isinstance(value, Node), f"a node was expected, got {value!r}"
    return value


def _numel(node: Node) -> int:
    value = node.meta["val"]
    return int(value.numel()) if isinstance(value, Tensor) else 0
