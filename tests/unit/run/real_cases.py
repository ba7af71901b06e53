# SPDX-License-Identifier: Apache-2.0
"""The table of quantized operators for judges: operands, options, the real result in NumPy on numbers of 200 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from one_operator import grid, mp
from real_ops import Bias, Case, Data, Weight, each

FUSED = {"fused_activation_function": "NONE"}
SUM = {**FUSED, "pot_scale_int16": False}
LINEAR = {**FUSED, "weights_format": "DEFAULT", "keep_num_dims": True, "asymmetric_quantize_inputs": False}
PLAIN = {"adjoint_lhs": False, "adjoint_rhs": False, "asymmetric_quantize_inputs": False}
WINDOW = {**FUSED, "padding": "VALID", "stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1}
MASKS = {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0, "shrink_axis_mask": 0}
KEPT = {"keep_dims": True}
SHAPE = (3, 5, 40)
X, ALL, POSITIVE = Data(SHAPE), Data((), all=True), Data((), all=True, positive=True)
ZERO, ONE, SLOPE = mp.mpf(0), mp.mpf(1), mp.mpf(float(np.float32(0.1)))
exp, log, sqrt, floor = each(mp.exp), each(mp.log), each(mp.sqrt), each(mp.floor)


def ints(*values: Any) -> Any:
    return np.array(values, np.int32)


def scalar(value: int) -> Any:
    return np.array(value, np.int32)


def softmax(x: Any) -> Any:
    powers = exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def logistic(x: Any) -> Any:
    return 1 / (1 + exp(-x))


def gelu(x: Any) -> Any:
    return x * each(mp.erfc)(-x / mp.sqrt(2)) / 2


def gelu_tanh(x: Any) -> Any:
    return x * logistic(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3))


def windows(x: Any, w: Any) -> Any:
    """(part of NHWC data, place in the window): no padding, stride 1."""
    kh, kw = w.shape[1:3]
    rows, columns = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    return [(x[:, i : i + rows, j : j + columns], (i, j)) for i in range(kh) for j in range(kw)]


PRODUCTS = {
    "FULLY_CONNECTED": Case(
        "FULLY_CONNECTED",
        [Data((31, 70)), Weight((53, 70), 0), Bias(53)],
        lambda x, w: x @ w.T,
        LINEAR,
        product=True,
    ),
    "FULLY_CONNECTED without bias": Case(
        "FULLY_CONNECTED", [Data((31, 70)), Weight((53, 70), 0), None], lambda x, w: x @ w.T, LINEAR, product=True
    ),
    "CONV_2D": Case(
        "CONV_2D",
        [Data((1, 11, 12, 5)), Weight((19, 3, 3, 5), 0), Bias(19)],
        lambda x, w: sum(part @ w[:, i, j].T for part, (i, j) in windows(x, w)),
        WINDOW,
        product=True,
    ),
    "DEPTHWISE_CONV_2D": Case(
        "DEPTHWISE_CONV_2D",
        [Data((1, 12, 11, 20)), Weight((1, 3, 3, 20), 3), Bias(20)],
        lambda x, w: sum(part * w[0, i, j] for part, (i, j) in windows(x, w)),
        {**WINDOW, "depth_multiplier": 1},
        product=True,
    ),
    "BATCH_MATMUL": Case("BATCH_MATMUL", [Data((3, 21, 50)), Data((3, 50, 30), 1.7)], np.matmul, PLAIN, product=True),
    "BATCH_MATMUL turned": Case(
        "BATCH_MATMUL",
        [Data((3, 21, 50)), Data((3, 30, 50), 1.7)],
        lambda x, y: x @ y.swapaxes(1, 2),
        {**PLAIN, "adjoint_rhs": True},
        product=True,
    ),
}
TWO: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ADD": (np.add, SUM),
    "SUB": (np.subtract, SUM),
    "MUL": (np.multiply, FUSED),
    "DIV": (np.divide, FUSED),
    "SQUARED_DIFFERENCE": (lambda x, y: (x - y) ** 2, {}),
    "MAXIMUM": (np.maximum, {}),
    "MINIMUM": (np.minimum, {}),
    "POW": (lambda x, y: x**y, {}),
    "FLOOR_DIV": (lambda x, y: floor(x / y), {}),
    "FLOOR_MOD": (lambda x, y: x - floor(x / y) * y, {}),
}
COMPARED = {
    "EQUAL": np.equal,
    "NOT_EQUAL": np.not_equal,
    "GREATER": np.greater,
    "GREATER_EQUAL": np.greater_equal,
    "LESS": np.less,
    "LESS_EQUAL": np.less_equal,
}
ONE_OPERAND: dict[str, Callable[..., Any]] = {
    "NEG": np.negative,
    "ABS": np.abs,
    "SQRT": sqrt,
    "RSQRT": lambda x: 1 / sqrt(x),
    "EXP": exp,
    "LOG": log,
    "SQUARE": np.square,
    "FLOOR": floor,
    "CEIL": each(mp.ceil),
    "ROUND": each(mp.nint),
    "SIN": each(mp.sin),
    "COS": each(mp.cos),
    "TANH": each(mp.tanh),
    "LOGISTIC": logistic,
    "RELU": lambda x: np.maximum(x, ZERO),
    "RELU6": lambda x: np.minimum(np.maximum(x, ZERO), 6 * ONE),
    "ELU": each(lambda x: mp.expm1(x) if x < 0 else x),
}
#: the only output grids that LiteRT takes (TANH of int8: any)
FIXED = {
    "LOGISTIC": {"int8": grid("int8", 1 / 256, -128), "int16": grid("int16", 1 / 32768)},
    "TANH": {"int8": grid("int8", 1 / 128), "int16": grid("int16", 1 / 32768)},
    "SOFTMAX": {"int8": grid("int8", 1 / 256, -128), "int16": grid("int16", 1 / 32768)},
    "LOG_SOFTMAX": {"int8": grid("int8", 1 / 16, 127)},
}
EVEN = np.arange(40) % 3 == 0


def _two(name: str) -> Case:
    positive = name in ("DIV", "POW", "FLOOR_DIV", "FLOOR_MOD")
    real, options = TWO[name]
    first, second = Data(SHAPE, positive=name == "POW"), Data((40,), 0.3 if name == "POW" else 1.7, positive=positive)
    return Case(name, [first, second], real, options)


def _topk(x: Any) -> Any:
    order = np.argsort(-x, axis=-1, kind="stable")[..., :3]
    return [np.take_along_axis(x, order, -1), order.astype(np.int32)]


MOVES: dict[str, tuple[list[Any], Callable[..., Any], dict[str, Any]]] = {
    "MAXIMUM": ([X, X], np.maximum, {}),
    "MINIMUM": ([X, X], np.minimum, {}),
    "REDUCE_MAX": ([X, ints(2)], lambda x: x.max(2, keepdims=True), KEPT),
    "REDUCE_MIN": ([X, ints(2)], lambda x: x.min(2, keepdims=True), KEPT),
    "TOPK_V2": ([X, scalar(3)], _topk, {}),
    "RESHAPE": ([X, ints(15, 40)], lambda x: x.reshape(15, 40), {"new_shape": [15, 40]}),
    "TRANSPOSE": ([X, ints(2, 0, 1)], lambda x: x.transpose(2, 0, 1), {}),
    "SQUEEZE": ([Data((3, 1, 40))], lambda x: x[:, 0], {"squeeze_dims": [1]}),
    "EXPAND_DIMS": ([X, scalar(1)], lambda x: x[:, None], {}),
    "BROADCAST_TO": ([Data((5, 40)), ints(3, 5, 40)], lambda x: np.broadcast_to(x, SHAPE), {}),
    "TILE": ([X, ints(1, 2, 1)], lambda x: np.tile(x, (1, 2, 1)), {}),
    "CONCATENATION": ([X, Data((3, 2, 40))], lambda x, y: np.concatenate([x, y], 1), {"axis": 1, **FUSED}),
    "SPLIT": ([scalar(2), X], lambda x: np.split(x, 2, 2), {"num_splits": 2}),
    "SPLIT_V": ([X, ints(10, 30), scalar(2)], lambda x: np.split(x, [10], 2), {"num_splits": 2}),
    "SLICE": ([X, ints(0, 1, 1), ints(2, 2, 3)], lambda x: x[0:2, 1:3, 1:4], {}),
    "STRIDED_SLICE": (
        [X, ints(0, 0, 1), ints(2, 5, 40), ints(1, 2, 2)],
        lambda x: x[:2, ::2, 1::2],
        {**MASKS, "offset": False},
    ),
    "PAD": ([X, ints([1, 0], [0, 2], [0, 0])], lambda x: _padded(x, ZERO), {}),
    "PADV2": ([X, ints([1, 0], [0, 2], [0, 0]), Data((1,))], lambda x, v: _padded(x, v[0]), {}),
    "GATHER": ([X, ints(2, 0, 4)], lambda x: x[:, [2, 0, 4]], {"axis": 1, "batch_dims": 0}),
    "GATHER_ND": ([X, ints([1, 2], [0, 0])], lambda x: x[[1, 0], [2, 0]], {}),
    "SELECT": ([np.broadcast_to(EVEN, SHAPE).copy(), X, X], lambda x, y: np.where(EVEN, x, y), {}),
    "SELECT_V2": ([EVEN, X, X], lambda x, y: np.where(EVEN, x, y), {}),
    "PACK": ([X, X], lambda x, y: np.stack([x, y], 1), {"values_count": 2, "axis": 1}),
    "UNPACK": ([Data((2, 40))], lambda x: [x[0], x[1]], {"num": 2, "axis": 0}),
    "ONE_HOT": (
        [ints(0, 2), scalar(4), Data(()), Data(())],
        lambda on, off: np.where(np.eye(4, dtype=bool)[[0, 2]], on, off),
        {"axis": -1},
    ),
    "FILL": ([ints(2, 3), Data(())], lambda v: np.full((2, 3), v), {}),
}


def _padded(x: Any, value: Any) -> Any:
    return np.pad(x, ((1, 0), (0, 2), (0, 0)), constant_values=value)


CASES: dict[str, Case] = {
    **PRODUCTS,
    **{(f"{name} of two grids" if name in MOVES else name): _two(name) for name in TWO},
    **{
        name: Case(
            name,
            [POSITIVE if name in ("SQRT", "RSQRT", "LOG") else ALL],
            real,
            fixed=FIXED.get(name, {}),
        )
        for name, real in ONE_OPERAND.items()
    },
    "NEG of one grid": Case("NEG", [ALL], np.negative, moves=True),
    "GELU": Case("GELU", [ALL], gelu, {"approximate": False}),
    "GELU tanh": Case("GELU", [ALL], gelu_tanh, {"approximate": True}),
    "LEAKY_RELU": Case("LEAKY_RELU", [ALL], each(lambda x: x * SLOPE if x < 0 else x), {"alpha": 0.1}),
    "SOFTMAX": Case("SOFTMAX", [Data((40, 40))], softmax, {"beta": 1.0}, fixed=FIXED["SOFTMAX"]),
    "LOG_SOFTMAX": Case("LOG_SOFTMAX", [Data((40, 40))], lambda x: log(softmax(x)), fixed=FIXED["LOG_SOFTMAX"]),
    "MEAN": Case("MEAN", [Data((2, 7, 9, 20)), ints(1, 2)], lambda x: x.mean((1, 2), keepdims=True), KEPT),
    "MEAN of rows": Case("MEAN", [Data((40, 37)), ints(1)], lambda x: x.mean(1, keepdims=True), KEPT),
    "SUM": Case("SUM", [Data((40, 37)), ints(1)], lambda x: x.sum(1, keepdims=True), KEPT),
    "CUMSUM": Case("CUMSUM", [X, scalar(1)], lambda x: x.cumsum(1), {"exclusive": False, "reverse": False}),
    "ARG_MAX": Case("ARG_MAX", [X, ints(2)], lambda x: x.argmax(2).astype(np.int32), {"output_type": "INT32"}),
    "ARG_MIN": Case("ARG_MIN", [X, ints(2)], lambda x: x.argmin(2).astype(np.int32), {"output_type": "INT32"}),
    "REDUCE_MAX of two grids": Case("REDUCE_MAX", [X, ints(2)], lambda x: x.max(2, keepdims=True), KEPT),
    "REDUCE_MIN of two grids": Case("REDUCE_MIN", [X, ints(2)], lambda x: x.min(2, keepdims=True), KEPT),
    "CONCATENATION of two grids": Case(
        "CONCATENATION",
        [X, Data((3, 2, 40), 1.7)],
        lambda x, y: np.concatenate([x, y], 1),
        {"axis": 1, **FUSED},
    ),
    "QUANTIZE": Case("QUANTIZE", [X], lambda x: x),
    **{name: Case(name, [X, Data((40,), 1.7)], lambda x, y, f=f: f(x, y).astype(bool)) for name, f in COMPARED.items()},
    **{name: Case(name, operands, real, options, moves=True) for name, (operands, real, options) in MOVES.items()},
}
