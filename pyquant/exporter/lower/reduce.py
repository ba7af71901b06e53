# SPDX-License-Identifier: Apache-2.0
"""Reductions: MEAN, SUM, REDUCE_MAX, ARG_MAX. Axes become an int32 constant.

Normalizations that reduce inside are norm.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyquant.exporter.context import Context
from pyquant.exporter.lower.move import reshape
from pyquant.exporter.registry import Kind, lowers
from pyquant.exporter.values import Const, Ref, Value


@lowers("aten.mean.dim")
def mean(
    cx: Context, x: Value, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Ref:
    return cx.compute("MEAN", [x], {"keep_dims": keepdim}, tail=[_axes(cx, x, dim)])


@lowers("aten.mean.default")
def mean_all(cx: Context, x: Value, *, dtype: torch.dtype | None = None) -> Ref:
    return cx.compute("MEAN", [x], {"keep_dims": False}, tail=[_axes(cx, x, None)])


@lowers("aten.sum.dim_IntList")
def total(
    cx: Context, x: Value, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Ref:
    return cx.compute("SUM", [x], {"keep_dims": keepdim}, tail=[_axes(cx, x, dim)])


@lowers("aten.sum.default")
def total_all(cx: Context, x: Value, *, dtype: torch.dtype | None = None) -> Ref:
    return cx.compute("SUM", [x], {"keep_dims": False}, tail=[_axes(cx, x, None)])


@lowers("aten.amax.default", kind=Kind.JOIN)
def amax(cx: Context, x: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Ref:
    return cx.join("REDUCE_MAX", [x], {"keep_dims": keepdim}, tail=[_axes(cx, x, dim)])


@lowers("aten.argmax.default")
def argmax(cx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Ref | Const:
    """ARG_MAX on integers is that of the values they stand for, so a quantized input stays quantized."""
    assert isinstance(x, Ref | Const)
    if dim is None:
        x, dim = reshape(cx, x, (torch.Size(cx.shape(x)).numel(),)), 0
    shape = cx.shape(x)
    dim %= max(len(shape), 1)
    rest = tuple(size for axis, size in enumerate(shape) if axis != dim)
    index = cx.emit("ARG_MAX", [x, cx.ints([dim], "axes")], {"output_type": "INT64"}, shape=rest)
    return reshape(cx, index, cx.out_shape)


def _axes(cx: Context, x: Value, dim: Sequence[int] | int | None) -> Const:
    rank = len(cx.shape(x))
    given = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return cx.ints([axis % max(rank, 1) for axis in given], "axes")
