# SPDX-License-Identifier: Apache-2.0
"""Operators that move values without changing them: reshape, transpose, expand, repeat, slice, pad, select, split.

Every one keeps its input's type and grid. SPLIT_V is never written, because onert computes zeros for it: each part
is a SLICE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyquant.exporter.context import Context
from pyquant.exporter.registry import GETITEM, PADS, Kind, lowers
from pyquant.exporter.values import Const, Ref, Value


def reshape(cx: Context, x: Ref | Const, shape: tuple[int, ...]) -> Ref | Const:
    """`x` in another shape: itself when nothing changes, a constant when it is one, else RESHAPE."""
    if cx.shape(x) == shape:
        return x
    if isinstance(x, Const) and (x.quant is None or x.quant.per_tensor):
        const = x
        ints = (lambda: const.ints().reshape(shape)) if const.quant else None
        return Const(x.name, shape, x.dtype, lambda: const.value().reshape(shape), x.where, x.quant, ints)
    return cx.move("RESHAPE", x, [cx.ints(shape, "shape")], {"new_shape": list(shape)}, shape=shape)


def slice_of(cx: Context, x: Ref | Const, dim: int, start: int, size: int) -> Ref | Const:
    """`size` elements of `x` from `start` along `dim`."""
    shape = cx.shape(x)
    if size == shape[dim]:
        return x
    begin = [start if axis == dim else 0 for axis in range(len(shape))]
    sizes = [size if axis == dim else extent for axis, extent in enumerate(shape)]
    return cx.move("SLICE", x, [cx.ints(begin, "begin"), cx.ints(sizes, "size")], shape=tuple(sizes))


def pad_of(cx: Context, x: Ref | Const, sizes: Sequence[tuple[int, int]]) -> Ref | Const:
    """`x` between zeros: (before, after) for each dimension. Every grid has zero, so the grid stays."""
    if not any(size for pair in sizes for size in pair):
        return x
    shape = tuple(before + size + after for size, (before, after) in zip(cx.shape(x), sizes, strict=True))
    flat = torch.tensor(sizes, dtype=torch.int32, device="cpu")
    paddings = Const("paddings", tuple(flat.shape), torch.int32, lambda: flat, cx.where)
    return cx.move("PAD", x, [paddings], shape=shape)


@lowers(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    kind=Kind.MOVE,
)
def view(cx: Context, x: Ref | Const, *_: Any) -> Ref | Const:
    return reshape(cx, x, cx.out_shape)


@lowers("aten.permute.default", kind=Kind.MOVE)
def permute(cx: Context, x: Ref | Const, dims: Sequence[int]) -> Ref | Const:
    order = [dim % len(dims) for dim in dims]
    if order == sorted(order):
        return x
    return cx.move("TRANSPOSE", x, [cx.ints(order, "perm")])


@lowers("aten.transpose.int", kind=Kind.MOVE)
def transpose(cx: Context, x: Ref | Const, dim0: int, dim1: int) -> Ref | Const:
    order = list(range(len(cx.shape(x))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(cx, x, order)


@lowers("aten.numpy_T.default", kind=Kind.MOVE)
def numpy_t(cx: Context, x: Ref | Const) -> Ref | Const:
    return permute(cx, x, list(reversed(range(len(cx.shape(x))))))


@lowers("aten.t.default", "aten.mT.default", kind=Kind.MOVE)
def t(cx: Context, x: Ref | Const) -> Ref | Const:
    return transpose(cx, x, -1, -2) if len(cx.shape(x)) > 1 else x


@lowers("aten.expand.default", kind=Kind.MOVE)
def expand(cx: Context, x: Ref | Const, size: Sequence[int], *, implicit: bool = False) -> Ref | Const:
    shape = cx.out_shape
    if torch.Size(shape).numel() == torch.Size(cx.shape(x)).numel():
        return reshape(cx, x, shape)
    return cx.move("BROADCAST_TO", x, [cx.ints(shape, "shape")])


@lowers("aten.repeat.default", kind=Kind.MOVE)
def repeat(cx: Context, x: Ref | Const, repeats: Sequence[int]) -> Ref | Const:
    """Tiles, as a broadcast over new dimensions of size 1 (the reference runtime has no TILE)."""
    shape = (1,) * (len(repeats) - len(cx.shape(x))) + cx.shape(x)
    thin = [part for times, size in zip(repeats, shape, strict=True) for part in ((1, size) if times > 1 else (size,))]
    wide = [
        part for times, size in zip(repeats, shape, strict=True) for part in ((times, size) if times > 1 else (size,))
    ]
    return _through(cx, x, thin, wide)


@lowers("aten.repeat_interleave.self_int", kind=Kind.MOVE)
def repeat_interleave(
    cx: Context, x: Ref | Const, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Ref | Const:
    shape = list(cx.shape(x)) if dim is not None else [torch.Size(cx.shape(x)).numel()]
    axis = (dim or 0) % len(shape) + 1
    return _through(cx, x, [*shape[:axis], 1, *shape[axis:]], [*shape[:axis], repeats, *shape[axis:]])


def _through(cx: Context, x: Ref | Const, thin: list[int], wide: list[int]) -> Ref | Const:
    if thin != wide:
        x = cx.move("BROADCAST_TO", reshape(cx, x, tuple(thin)), [cx.ints(wide, "shape")], shape=tuple(wide))
    return reshape(cx, x, cx.out_shape)


@lowers("aten.slice.Tensor", kind=Kind.MOVE)
def slice_(
    cx: Context, x: Ref | Const, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Ref | Const:
    shape = cx.shape(x)
    dim %= len(shape)
    first, last, _ = slice(start, end, step).indices(shape[dim])
    if step == 1:
        return slice_of(cx, x, dim, first, max(last - first, 0))
    rank = range(len(shape))
    begin = cx.ints([first if axis == dim else 0 for axis in rank], "begin")
    stop = cx.ints([last if axis == dim else shape[axis] for axis in rank], "end")
    strides = cx.ints([step if axis == dim else 1 for axis in rank], "strides")
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    return cx.move("STRIDED_SLICE", x, [begin, stop, strides], dict.fromkeys(masks, 0) | {"offset": False})


@lowers(*PADS, kind=Kind.MOVE)
def pad(cx: Context, x: Ref | Const, pad: Sequence[int], *given: Any) -> Ref | Const:
    """Zeros around the last dimensions, listed from the last one on as torch lists them."""
    mode, value = (
        next((g for g in given if isinstance(g, str)), "constant"),
        [g for g in given if not isinstance(g, str)],
    )
    if mode != "constant" or any(value) or min(pad) < 0:
        raise cx.error(f"PAD adds zeros, got {mode = }, {value = }, {list(pad) = }; slice, or concatenate constants")
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    sizes = [*[(0, 0)] * (len(cx.shape(x)) - len(pairs)), *reversed(pairs)]
    return pad_of(cx, x, sizes)


@lowers("aten.narrow.default", kind=Kind.MOVE)
def narrow(cx: Context, x: Ref | Const, dim: int, start: int, length: int) -> Ref | Const:
    shape = cx.shape(x)
    return slice_of(cx, x, dim % len(shape), start % shape[dim], length)


@lowers("aten.select.int", kind=Kind.MOVE)
def select(cx: Context, x: Ref | Const, dim: int, index: int) -> Ref | Const:
    shape = cx.shape(x)
    dim %= len(shape)
    return reshape(cx, slice_of(cx, x, dim, index % shape[dim], 1), cx.out_shape)


@lowers("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int", kind=Kind.MOVE)
def split(cx: Context, x: Ref | Const, *args: Any, dim: int = 0) -> list[Value]:
    """The parts, for every form of split; their sizes are those of the traced values."""
    unbind = str(cx.node.target) == "aten.unbind.int"
    position = 0 if unbind else 1
    dim = (args[position] if len(args) > position else dim) % len(cx.shape(x))
    parts: list[Value] = []
    start = 0
    for fake in cx.node.meta["val"]:
        size = 1 if unbind else fake.shape[dim]
        parts.append(reshape(cx, slice_of(cx, x, dim, start, size), tuple(fake.shape)))
        start += size
    return parts


@lowers(GETITEM, kind=Kind.MOVE)
def getitem(cx: Context, parts: Sequence[Value], index: int) -> Value:
    return parts[index]
