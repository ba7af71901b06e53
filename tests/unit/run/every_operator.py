# SPDX-License-Identifier: Apache-2.0
"""What each operator of ops.def computes, of real numbers: one row an operator, with shapes that show it.

References are NumPy's, in long double (64 bits of mantissa) for quantized and float data, in int64 for plain integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Real = np.longdouble


@dataclass(frozen=True)
class Case:
    """shapes: of the operands that are not integers. ints: position -> values of integer operands; values: of others.
    reference: all operands and the options -> outputs. exact: long double holds what it computes of small scales."""

    shapes: Sequence[tuple[int, ...]]
    reference: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    ints: dict[int, Any] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    exact: bool = True
    positive: Sequence[int] = ()  # operands of which only positive numbers mean something
    integers: Callable[..., Any] | None = None  # of plain integers, where it differs


def _erfc(x: Array) -> Array:
    return np.vectorize(math.erfc, otypes=[Real])(x.astype(float))


def _reduce(how: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axes, keep_dims=False, **_: how(
        x, axis=tuple(sorted({int(a) % x.ndim for a in np.atleast_1d(axes)})), keepdims=keep_dims
    )


def _cumsum(x: Array, axis: Array, exclusive: bool = False, reverse: bool = False) -> Array:
    a = int(np.ravel(axis)[0])
    v = np.flip(x, a) if reverse else x
    total = np.cumsum(v, a)
    total = total - v if exclusive else total
    return np.flip(total, a) if reverse else total


def _normal(x: Array, axes: Any) -> tuple[Array, Array]:
    mean = x.mean(axes, keepdims=True)
    return x - mean, ((x - mean) ** 2).mean(axes, keepdims=True)


def _instance(x: Array, gamma: Array, beta: Array, epsilon: float = 0.0, **_: Any) -> Array:
    d, variance = _normal(x, (1, 2))
    return d / np.sqrt(variance + Real(np.float32(epsilon))) * gamma + beta


def _rope(x: Array, sin: Array, cos: Array, mode: str = "GPT_NEOX") -> Array:
    if mode == "GPT_NEOX":
        half = x.shape[-1] // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    else:
        turned = np.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cos + turned * sin


def _linear(x: Array, w: Array, b: Any = None, weights_format: str = "DEFAULT", **_: Any) -> Array:
    if weights_format != "DEFAULT":
        w = w.reshape(-1, w.shape[1], 16).transpose(0, 2, 1).reshape(w.shape)
    y = x @ w.T
    return y if b is None else y + b


def _patches(x: Array, w: Array, padding: str) -> Array:
    """[batch, height, width, filter height, filter width, channels], stride 1."""
    h, v = w.shape[1:3]
    if padding == "SAME":
        x = np.pad(x, ((0, 0), ((h - 1) // 2, h // 2), ((v - 1) // 2, v // 2), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(x, (h, v), (1, 2)).transpose(0, 1, 2, 4, 5, 3)


def _conv(x: Array, w: Array, b: Any = None, padding: str = "SAME", **_: Any) -> Array:
    p = _patches(x, w, padding)
    y = p.reshape(*p.shape[:3], -1) @ w.reshape(w.shape[0], -1).T
    return y if b is None else y + b


def _depthwise(x: Array, w: Array, b: Any = None, padding: str = "SAME", depth_multiplier: int = 1, **_: Any) -> Array:
    p = np.repeat(_patches(x, w, padding), depth_multiplier, -1)
    y = (p * w[0]).sum((3, 4))
    return y if b is None else y + b


def _matmul(a: Array, b: Array, adjoint_lhs: bool = False, adjoint_rhs: bool = False, **_: Any) -> Array:
    return (a.swapaxes(-1, -2) if adjoint_lhs else a) @ (b.swapaxes(-1, -2) if adjoint_rhs else b)


def _softmax(x: Array, beta: float = 1.0) -> Array:
    e = np.exp(Real(beta) * (x - x.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


def _log_softmax(x: Array) -> Array:
    d = x - x.max(-1, keepdims=True)
    return d - np.log(np.exp(d).sum(-1, keepdims=True))


def _topk(x: Array, k: Array) -> tuple[Array, Array]:
    order = np.argsort(-x, -1, kind="stable")[..., : int(np.ravel(k)[0])]
    return np.take_along_axis(x, order, -1), order


def _int_power(a: Array, b: Array) -> Array:
    return np.where(b < 0, np.where(abs(a) == 1, np.where(b % 2 == 0, 1, a), 0), a ** np.maximum(b, 0))


def _int_mean(x: Array, axes: Array, **options: Any) -> Array:
    total = _reduce(np.sum)(x, axes, **options)
    return np.fix(total / (x.size // total.size)).astype(np.int64)


def _one_hot(index: Array, depth: Array, on: Array, off: Array, axis: int = -1) -> Array:
    hot = index[..., None] == np.arange(int(depth))
    return np.where(np.moveaxis(hot, -1, axis if axis >= 0 else hot.ndim + axis), on, off)


S = (2, 3, 4)
ONE = ((2, 3, 4),)
TWO = ((2, 3, 4), (3, 1))


def _one(reference: Callable[..., Any], *, exact: bool = True, **more: Any) -> list[Case]:
    return [Case(ONE, lambda x, **_: reference(x), exact=exact, **more)]


def _two(reference: Callable[..., Any], *, exact: bool = True, **more: Any) -> list[Case]:
    return [Case(TWO, lambda a, b, **_: reference(a, b), exact=exact, **more)]


def _moved(shape: tuple[int, ...], ints: dict[int, Any], reference: Callable[..., Any], **options: Any) -> Case:
    return Case((shape,), reference, options, ints)


CASES: dict[str, list[Case]] = {
    "FULLY_CONNECTED": [
        Case([(2, 5), (3, 5), (3,)], _linear),
        Case([(2, 1, 5), (3, 5)], _linear, {"keep_num_dims": True}),
        Case([(2, 3), (32, 3), (32,)], _linear, {"weights_format": "SHUFFLED16x1FLOAT32"}),
        Case([(2, 3), (32, 3)], _linear, {"weights_format": "SHUFFLED4x16INT8"}),
    ],
    "CONV_2D": [
        Case([(1, 4, 3, 3), (2, 2, 3, 3), (2,)], _conv, {"padding": "SAME", "stride_w": 1, "stride_h": 1}),
        Case([(2, 3, 3, 2), (2, 2, 2, 2)], _conv, {"padding": "VALID", "stride_w": 1, "stride_h": 1}),
    ],
    "DEPTHWISE_CONV_2D": [
        Case(
            [(1, 3, 4, 2), (1, 2, 3, 4), (4,)],
            _depthwise,
            {"padding": "SAME", "stride_w": 1, "stride_h": 1, "depth_multiplier": 2},
        )
    ],
    "BATCH_MATMUL": [
        Case([(2, 3, 5), (1, 5, 4)], _matmul),
        Case([(2, 5, 3), (2, 4, 5)], _matmul, {"adjoint_lhs": True, "adjoint_rhs": True}),
    ],
    "RMS_NORM": [
        Case(
            [S, (4,)],
            lambda x, g, epsilon: x / np.sqrt((x * x).mean(-1, keepdims=True) + Real(np.float32(epsilon))) * g,
            {"epsilon": 0.25},
            exact=False,
        )
    ],
    "INSTANCE_NORM": [Case([(2, 3, 2, 4), (4,), (1,)], _instance, {"epsilon": 0.25}, exact=False)],
    "ROPE": [Case([(1, 2, 3, 4), (1, 1, 3, 4), (1, 1, 1, 4)], _rope, {"mode": m}) for m in ("GPT_NEOX", "GPT_J")],
    "ADD": _two(np.add),
    "SUB": _two(np.subtract),
    "MUL": _two(np.multiply),
    "DIV": _two(np.divide, exact=False, integers=lambda a, b, **_: np.fix(a / b).astype(np.int64), positive=[1]),
    "MAXIMUM": _two(np.maximum),
    "MINIMUM": _two(np.minimum),
    "POW": _two(np.power, exact=False, integers=lambda a, b, **_: _int_power(a, b), positive=[0]),
    "SQUARED_DIFFERENCE": _two(lambda a, b: (a - b) ** 2),
    "FLOOR_DIV": _two(lambda a, b: np.floor(a / b), exact=False, integers=lambda a, b, **_: a // b, positive=[1]),
    "FLOOR_MOD": _two(lambda a, b: np.mod(a, b), positive=[1]),
    "NEG": _one(np.negative),
    "ABS": _one(np.abs),
    "SQRT": _one(np.sqrt, exact=False),
    "RSQRT": _one(lambda x: 1 / np.sqrt(x), exact=False, positive=[0]),
    "EXP": _one(np.exp, exact=False),
    "LOG": _one(np.log, exact=False),
    "SQUARE": _one(np.square),
    "FLOOR": _one(np.floor),
    "CEIL": _one(np.ceil),
    "ROUND": _one(np.rint),
    "SIN": _one(np.sin, exact=False),
    "COS": _one(np.cos, exact=False),
    "TANH": _one(np.tanh, exact=False),
    "LOGISTIC": _one(lambda x: 1 / (1 + np.exp(-x)), exact=False),
    "RELU": _one(lambda x: np.maximum(x, 0)),
    "RELU6": _one(lambda x: np.clip(x, 0, 6)),
    "GELU": [
        Case(ONE, lambda x, **_: x / 2 * _erfc(-x / np.sqrt(Real(2))), {"approximate": False}, exact=False),
        Case(
            ONE,
            lambda x, **_: x / (1 + np.exp(-2 * np.sqrt(2 / Real(math.pi)) * (x + Real(0.044715) * x**3))),
            {"approximate": True},
            exact=False,
        ),
    ],
    "ELU": _one(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x), exact=False),
    "LEAKY_RELU": [Case(ONE, lambda x, alpha: np.where(x < 0, x * Real(alpha), x), {"alpha": 0.25})],
    "SOFTMAX": [Case(ONE, _softmax, {"beta": 0.5}, exact=False)],
    "LOG_SOFTMAX": _one(_log_softmax, exact=False),
    "MEAN": [
        Case(ONE, _reduce(np.mean), {"keep_dims": k}, {1: a}, exact=False, integers=_int_mean)
        for k, a in ((True, [1]), (False, [0, -1]))
    ],
    "SUM": [Case(ONE, _reduce(np.sum), {"keep_dims": k}, {1: a}) for k, a in ((True, [2]), (False, [0, 1]))],
    "REDUCE_MAX": [Case(ONE, _reduce(np.max), {"keep_dims": k}, {1: a}) for k, a in ((True, [0]), (False, [1, 2]))],
    "REDUCE_MIN": [Case(ONE, _reduce(np.min), {"keep_dims": k}, {1: a}) for k, a in ((True, [2]), (False, [0, 1, 2]))],
    "CUMSUM": [
        Case(ONE, _cumsum, {"exclusive": e, "reverse": r}, {1: np.int32(a)})
        for e, r, a in ((False, False, 1), (True, True, -1))
    ],
    "ARG_MAX": [Case(ONE, lambda x, a, **_: np.argmax(x, int(a)), {}, {1: np.int32(a)}) for a in (0, -1)],
    "ARG_MIN": [Case(ONE, lambda x, a, **_: np.argmin(x, int(a)), {}, {1: np.int32(a)}) for a in (1, 2)],
    "TOPK_V2": [Case(ONE, _topk, {}, {1: np.int32(2)})],
    "RESHAPE": [_moved(S, {1: [4, -1]}, lambda x, shape, **_: x.reshape([int(n) for n in shape]))],
    "TRANSPOSE": [_moved(S, {1: [2, 0, 1]}, lambda x, order: x.transpose([int(n) for n in order]))],
    "SQUEEZE": [_moved((2, 1, 3), {}, lambda x, **_: x[:, 0], squeeze_dims=[1])],
    "EXPAND_DIMS": [_moved(S, {1: np.int32(-2)}, lambda x, axis: np.expand_dims(x, int(axis)))],
    "BROADCAST_TO": [_moved((3, 1), {1: [2, 3, 4]}, lambda x, shape: np.broadcast_to(x, [int(n) for n in shape]))],
    "TILE": [_moved(S, {1: [1, 2, 3]}, lambda x, times: np.tile(x, [int(n) for n in times]))],
    "CONCATENATION": [Case([S, (2, 1, 4)], lambda a, b, axis, **_: np.concatenate([a, b], axis), {"axis": 1})],
    "SPLIT": [_moved(S, {0: np.int32(2)}, lambda axis, x, **_: np.split(x, 2, int(axis)), num_splits=2)],
    "SPLIT_V": [
        _moved(
            S,
            {1: [1, -1], 2: np.int32(1)},
            lambda x, sizes, axis, **_: np.split(x, [int(sizes[0])], int(axis)),
            num_splits=2,
        )
    ],
    "SLICE": [_moved(S, {1: [1, 0, 1], 2: [1, 2, -1]}, lambda x, b, s: x[1:2, 0:2, 1:])],
    "STRIDED_SLICE": [
        _moved(S, {1: [0, 2, 0], 2: [2, 0, 4], 3: [1, -1, 2]}, lambda x, b, e, s, **_: x[0:2, 2:0:-1, 0:4:2])
    ],
    "PAD": [_moved((2, 3), {1: [[1, 0], [2, 1]]}, lambda x, p, **_: np.pad(x, [(1, 0), (2, 1)]))],
    "PADV2": [
        Case(
            [(2, 3), ()],
            lambda x, p, v: np.pad(x, [(1, 0), (2, 1)], constant_values=v),
            {},
            {1: [[1, 0], [2, 1]]},
        )
    ],
    "GATHER": [
        _moved(S, {1: [2, 0, 1, 2]}, lambda x, i, axis, **_: np.take(x, i.astype(int), axis), axis=1),
    ],
    "GATHER_ND": [_moved(S, {1: [[1, 2], [0, 0]]}, lambda x, i: x[i[:, 0].astype(int), i[:, 1].astype(int)])],
    "SELECT": [Case([S, S, S], lambda c, a, b: np.where(c, a, b))],
    "SELECT_V2": [Case([(3, 1), S, (4,)], lambda c, a, b: np.where(c, a, b))],
    "PACK": [Case([S, S], lambda a, b, axis, **_: np.stack([a, b], axis), {"axis": 1, "values_count": 2})],
    "UNPACK": [_moved(S, {}, lambda x, **_: [x[:, i] for i in range(3)], axis=1, num=3)],
    "ONE_HOT": [Case([(), ()], _one_hot, {"axis": -1}, {0: [[0, 2], [1, 3]], 1: np.int32(3)})],
    "FILL": [Case([()], lambda shape, x: np.full([int(n) for n in shape], x), {}, {0: [2, 3]})],
    "RANGE": [Case([(), (), ()], lambda a, b, c: np.arange(a, b, c), values={0: 1, 1: 7, 2: 2})],
    "SHAPE": [Case(ONE, lambda x, **_: np.array(x.shape))],
    "CAST": [Case(ONE, lambda x, **_: x)],
    "QUANTIZE": [Case(ONE, lambda x: x)],
    "DEQUANTIZE": [Case(ONE, lambda x: x)],
    "EQUAL": _two(np.equal),
    "NOT_EQUAL": _two(np.not_equal),
    "GREATER": _two(np.greater),
    "GREATER_EQUAL": _two(np.greater_equal),
    "LESS": _two(np.less),
    "LESS_EQUAL": _two(np.less_equal),
    "LOGICAL_AND": _two(np.logical_and),
    "LOGICAL_OR": _two(np.logical_or),
    "LOGICAL_NOT": _one(np.logical_not),
}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "NONE": lambda x: x,
    "RELU": lambda x: np.maximum(x, 0),
    "RELU_N1_TO_1": lambda x: np.clip(x, -1, 1),
    "RELU6": lambda x: np.clip(x, 0, 6),
    "TANH": np.tanh,
    "SIGN_BIT": np.signbit,
}
