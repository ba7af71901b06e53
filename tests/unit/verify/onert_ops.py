# SPDX-License-Identifier: Apache-2.0
"""One-operator graphs for every row of ops.def that onert may run: inputs by type, options, and the right answer.

It owns the table. Running it is test_onert_table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.circle import write as circle_write
from pyquant.exporter.plan import DTYPES, Graph, Op, Quant
from pyquant.exporter.plan import Tensor as PlanTensor
from pyquant.verify.runtimes import onert

QUANTIZED = {"uint8": (0, 255, 128), "int8": (-128, 127, 3)}
STEP = 0.05
FUSED = {"fused_activation_function": "NONE"}
SUM = {**FUSED, "pot_scale_int16": False}
MASKS = {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0, "shrink_axis_mask": 0}
TORCH = {name: dtype for dtype, name in DTYPES.items()}
# (scale, zero point in int8) of outputs whose grid the runtimes fix
FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (2 / 256, 0), "SOFTMAX": (1 / 256, -128)}


class Data:
    """An input of the type under test, of this shape; `positive` where the operator asks for it."""

    def __init__(self, *shape: int, positive: bool = False, constant: bool = False, small: bool = False) -> None:
        self.shape, self.positive, self.constant, self.small = shape, positive, constant, small


def const(*values: Any, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """`right(*inputs)` are the outputs on real values; `move` keeps the input's grid."""

    inputs: Sequence[Any]
    right: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    move: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def right_of(name: str) -> Callable[..., Any]:
    return getattr(torch, name)  # type: ignore[no-any-return]


X, Y, X3, X4 = Data(2, 6), Data(2, 6), Data(2, 3, 4), Data(1, 4, 4, 2)
REDUCE = {"keep_dims": False}
CONV = {"padding": "VALID", "stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1, **FUSED}


def whole(name: str, **more: Any) -> Callable[..., Any]:
    """A reduction over the last axis."""
    return lambda x, _: getattr(x, name)(dim=-1, **more)


def _layer_norm_free_rms(x: Tensor, gamma: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gamma, 1e-6)


def _conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), b).permute(0, 2, 3, 1)


def _depthwise(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    kernel = w.permute(3, 0, 1, 2)  # (1, h, w, channels) -> (channels, 1, h, w)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, b, groups=x.shape[-1]).permute(0, 2, 3, 1)


def _rope(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


G = torch.Generator().manual_seed(5)
CASES: dict[str, Case] = {
    "FULLY_CONNECTED": Case(
        [X, torch.randn(4, 6, generator=G), torch.randn(4, generator=G)],
        F.linear,
        {**FUSED, "weights_format": "DEFAULT", "keep_num_dims": False, "asymmetric_quantize_inputs": False},
    ),
    "CONV_2D": Case([X4, torch.randn(3, 2, 2, 2, generator=G), torch.randn(3, generator=G)], _conv, CONV),
    "DEPTHWISE_CONV_2D": Case(
        [X4, torch.randn(1, 2, 2, 2, generator=G), torch.randn(2, generator=G)],
        _depthwise,
        {**CONV, "depth_multiplier": 1},
    ),
    "BATCH_MATMUL": Case(
        [X3, Data(2, 4, 5)],
        torch.matmul,
        {"adjoint_lhs": False, "adjoint_rhs": False, "asymmetric_quantize_inputs": False},
    ),
    "RMS_NORM": Case([X3, torch.rand(4, generator=G) + 0.5], _layer_norm_free_rms, {"epsilon": 1e-6}),
    "ROPE": Case(
        [Data(1, 2, 1, 8), torch.rand(1, 1, 1, 8, generator=G), torch.rand(1, 1, 1, 8, generator=G)],
        _rope,
        {"mode": "GPT_NEOX"},
    ),
    "ADD": Case([X, Y], torch.add, SUM),
    "SUB": Case([X, Y], torch.sub, SUM),
    "MUL": Case([X, Y], torch.mul, FUSED),
    "DIV": Case([X, Data(2, 6, positive=True)], torch.div, FUSED),
    "MAXIMUM": Case([X, Y], torch.maximum),
    "MINIMUM": Case([X, Y], torch.minimum),
    "POW": Case([Data(2, 6, positive=True), Data(2, 6, positive=True, small=True)], torch.pow),
    "SQUARED_DIFFERENCE": Case([X, Y], lambda x, y: (x - y) * (x - y)),
    "FLOOR_DIV": Case([X, Data(2, 6, positive=True)], torch.floor_divide),
    "FLOOR_MOD": Case([X, Data(2, 6, positive=True)], torch.remainder),
    **{
        name: Case([X], right_of(name.lower()))
        for name in ("NEG", "ABS", "EXP", "FLOOR", "CEIL", "ROUND", "SIN", "COS")
    },
    **{name: Case([Data(2, 6, positive=True)], right_of(name.lower())) for name in ("SQRT", "RSQRT", "LOG")},
    "SQUARE": Case([X], torch.square),
    "TANH": Case([X], torch.tanh),
    "LOGISTIC": Case([X], torch.sigmoid),
    "RELU": Case([X], torch.relu),
    "RELU6": Case([X], F.relu6),
    "GELU": Case([X], F.gelu, {"approximate": False}),
    "ELU": Case([X], F.elu),
    "LEAKY_RELU": Case([X], lambda x: F.leaky_relu(x, 0.1), {"alpha": 0.1}),
    "SOFTMAX": Case([X], lambda x: torch.softmax(x, -1), {"beta": 1.0}),
    "LOG_SOFTMAX": Case([X], lambda x: torch.log_softmax(x, -1)),
    "INSTANCE_NORM": Case(
        [X4, torch.rand(2, generator=G) + 0.5, torch.randn(2, generator=G)],
        lambda x, g, b: F.instance_norm(x.permute(0, 3, 1, 2), weight=g, bias=b, eps=1e-5).permute(0, 2, 3, 1),
        {"epsilon": 1e-5, **FUSED},
    ),
    "MEAN": Case([X3, const(2)], lambda x, _: x.double().mean(-1).float(), REDUCE),
    "SUM": Case([X3, const(2)], whole("sum"), REDUCE),
    "REDUCE_MAX": Case([X3, const(2)], whole("amax"), REDUCE),
    "REDUCE_MIN": Case([X3, const(2)], whole("amin"), REDUCE),
    "CUMSUM": Case(
        [X3, torch.tensor(2, dtype=torch.int32)], lambda x, _: x.cumsum(2), {"exclusive": False, "reverse": False}
    ),
    "ARG_MAX": Case([X3, const(2)], lambda x, _: x.argmax(2).int(), {"output_type": "INT32"}, more={"out": "int32"}),
    "ARG_MIN": Case([X3, const(2)], lambda x, _: x.argmin(2).int(), {"output_type": "INT32"}, more={"out": "int32"}),
    "RESHAPE": Case([X3, const(4, 6)], lambda x, s: x.reshape(*s.tolist()), {"new_shape": [4, 6]}, move=True),
    "TRANSPOSE": Case([X3, const(2, 0, 1)], lambda x, p: x.permute(*p.tolist()), move=True),
    "SQUEEZE": Case([Data(2, 1, 6)], lambda x: x.squeeze(1), {"squeeze_dims": [1]}, move=True),
    "EXPAND_DIMS": Case([X3, const(1)], lambda x, _: x.unsqueeze(1), move=True),
    "BROADCAST_TO": Case([X3, const(5, 2, 3, 4)], lambda x, s: x.expand(*s.tolist()), move=True),
    "TILE": Case([X3, const(1, 2, 1)], lambda x, s: x.repeat(*s.tolist()), move=True),
    "CONCATENATION": Case([X, Y], lambda x, y: torch.cat([x, y], 1), {"axis": 1, **FUSED}, move=True),
    "SPLIT": Case(
        [torch.tensor(1, dtype=torch.int32), X], lambda _, x: list(x.chunk(2, 1)), {"num_splits": 2}, move=True
    ),
    "SPLIT_V": Case(
        [X, const(2, 4), torch.tensor(1, dtype=torch.int32)],
        lambda x, s, _: list(x.split(s.tolist(), 1)),
        {"num_splits": 2},
        move=True,
    ),
    "SLICE": Case([X3, const(0, 1, 1), const(2, 2, 3)], lambda x, *_: x[:, 1:3, 1:4], move=True),
    "STRIDED_SLICE": Case(
        [X3, const(0, 0, 1), const(2, 3, 4), const(1, 2, 2)],
        lambda x, *_: x[:, ::2, 1::2],
        {**MASKS, "offset": False},
        move=True,
    ),
    "PAD": Case([X, const([1, 0], [0, 2])], lambda x, _: _padded(x), move=True),
    "PADV2": Case([X, const([1, 0], [0, 2]), Data(1, constant=True)], lambda x, _, v: _padded(x, v), move=True),
    "GATHER": Case([X3, const(2, 0)], lambda x, i: x[:, i.long()], {"axis": 1, "batch_dims": 0}, move=True),
    "GATHER_ND": Case([X3, const([1, 2], [0, 0])], lambda x, i: x[i[:, 0].long(), i[:, 1].long()], move=True),
    "SELECT": Case([torch.rand(2, 6, generator=G) > 0.5, X, Y], torch.where, move=True),
    "SELECT_V2": Case([torch.rand(2, 6, generator=G) > 0.5, X, Y], torch.where, move=True),
    "PACK": Case([X, Y], lambda x, y: torch.stack([x, y], 1), {"values_count": 2, "axis": 1}, move=True),
    "UNPACK": Case([X], lambda x: list(x.unbind(0)), {"num": 2, "axis": 0}, move=True),
    "ONE_HOT": Case(
        [const(0, 2), torch.tensor(4, dtype=torch.int32), Data(constant=True), Data(constant=True)],
        lambda i, n, on, off: torch.where(F.one_hot(i.long(), int(n)).bool(), on, off),
        {"axis": -1},
        move=True,
    ),
    "FILL": Case([const(2, 3), Data(constant=True)], lambda s, v: v.expand(*s.tolist()), move=True),
    "RANGE": Case(
        [Data(constant=True, positive=True)] * 3,
        lambda *_: None,
        more={"values": (1, 7, 2)},
    ),
    "SHAPE": Case([X3], lambda x: const(*x.shape), {"out_type": "INT32"}, more={"out": "int32"}),
    "CAST": Case([X], lambda x: x),
    "QUANTIZE": Case([X], lambda x: x),
    "DEQUANTIZE": Case([X], lambda x: x, more={"out": "float32"}),
    "EQUAL": Case([X, Y], torch.eq, more={"out": "bool"}),
    "NOT_EQUAL": Case([X, Y], torch.ne, more={"out": "bool"}),
    "GREATER": Case([X, Y], torch.gt, more={"out": "bool"}),
    "GREATER_EQUAL": Case([X, Y], torch.ge, more={"out": "bool"}),
    "LESS": Case([X, Y], torch.lt, more={"out": "bool"}),
    "LESS_EQUAL": Case([X, Y], torch.le, more={"out": "bool"}),
    "LOGICAL_AND": Case([X, Y], torch.logical_and),
    "LOGICAL_OR": Case([X, Y], torch.logical_or),
    "LOGICAL_NOT": Case([X], torch.logical_not),
}


def _padded(x: Tensor, value: Tensor | None = None) -> Tensor:
    number = 0 if value is None else value.reshape(()).item()
    if x.dtype is torch.bool:
        return F.pad(x.int(), (0, 2, 1, 0), value=int(number)).bool()
    return F.pad(x, (0, 2, 1, 0), value=number)


@dataclass
class OneOp:
    """The file of one operator on one type, what to give it, and what is right."""

    graph: Graph
    given: list[Tensor]
    right: list[Tensor]
    steps: list[float]  # of the output grids; 0 where exact or float

    def save(self, path: Any) -> None:
        circle_write(self.graph.to_json(), self.graph.constants, path)

    def failure(self, path: Any) -> str:
        """ "" when onert gives the right answer, else how it does not."""
        try:
            got = list(onert.run(path, self.given).values())
        except onert.VerifyError as error:
            return str(error).splitlines()[0]
        for mine, want, step in zip(got, self.right, self.steps, strict=True):
            limit = 1.01 * step + (1e-5 if want.is_floating_point() else 0) * (1 + float(want.double().abs().max()))
            worst = float((mine.double() - want.double()).abs().max())
            if not worst <= limit:
                return f"wrong by {worst:.3g}, {limit:.3g} allowed"
        return ""


def one_op(name: str, dtype: str, out: str | None = None) -> OneOp:
    """The graph of operator `name` on `dtype`. Data inputs are graph inputs, unless the case makes them constant."""
    case, generator = CASES[name], torch.Generator().manual_seed(hash_of(name))
    tensors: list[PlanTensor] = []
    constants: list[Tensor] = []
    given: list[Tensor] = []
    inputs: list[int] = []
    real: list[Tensor] = []
    weighted = dtype in QUANTIZED
    for place, spec in enumerate(case.inputs):
        tensor, quant, value = _input(spec, dtype, place, generator, case, weighted)
        real.append(value)
        constant = None
        if isinstance(spec, Data) and not spec.constant:
            inputs.append(place)
            given.append(value)
        else:
            constants.append(tensor)
            constant = len(constants) - 1
        stored = quant.dtype if quant else DTYPES[tensor.dtype]
        tensors.append(PlanTensor(f"i{place}", stored, tuple(tensor.shape), quant, constant=constant))
    if name == "RANGE":
        right = [torch.arange(*(v.item() for v in real), dtype=real[0].dtype)]
    else:
        made = real[0].to(TORCH[str(out)]) if name == "CAST" else case.right(*real)
        if isinstance(made, Tensor) and "out" not in case.more and out is None and dtype in ("int32", "int64"):
            made = made.to(TORCH[dtype])  # torch's own sums and quotients have another type
        right = made if isinstance(made, list) else [made]
    quants, steps = zip(*(_output(name, case, value, dtype, out) for value in right), strict=True)
    options = dict(case.options)
    if name == "CAST":
        options = {"in_data_type": dtype.upper(), "out_data_type": str(out).upper()}
    kinds = [quant.dtype if quant else DTYPES[value.dtype] for quant, value in zip(quants, right, strict=True)]
    tensors += [
        PlanTensor(f"o{place}", kind, tuple(value.shape), quant)
        for place, (kind, value, quant) in enumerate(zip(kinds, right, quants, strict=True))
    ]
    count = len(case.inputs)
    outputs = tuple(range(count, len(tensors)))
    op = Op(name, tuple(range(count)), outputs, options)
    return OneOp(
        Graph(name, tuple(tensors), (op,), tuple(inputs), outputs, tuple(constants)), given, right, list(steps)
    )


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def _input(
    spec: Any, dtype: str, place: int, generator: torch.Generator, case: Case, weighted: bool
) -> tuple[Tensor, Quant | None, Tensor]:
    """(stored, grid, real value) of one input."""
    if isinstance(spec, Tensor):
        if weighted and spec.is_floating_point():
            return _weight(spec, dtype, place)
        return spec, None, spec
    if "values" in case.more:
        value = torch.tensor(case.more["values"][place], dtype=TORCH[dtype])
        return value, None, value
    if dtype in QUANTIZED:
        low, high, zero = QUANTIZED[dtype]
        first = zero + 10 if spec.positive else low
        last = min(high, first + 20) if spec.small else high
        ints = torch.randint(first, last + 1, spec.shape, generator=generator).to(TORCH[dtype])
        quant = Quant(dtype, (float(np.float32(STEP)),), (zero,), None, low, high)
        return ints, quant, (ints.float() - zero) * STEP
    if dtype == "bool":
        value = torch.rand(spec.shape, generator=generator) > 0.5
    elif dtype == "float32":
        value = torch.randn(spec.shape, generator=generator)
        value = value.abs() + 0.5 if spec.positive else value
    else:
        value = torch.randint(1 if spec.positive else -9, 4 if spec.small else 10, spec.shape, generator=generator)
        value = value.to(TORCH[dtype])
    return value, None, value


def _weight(value: Tensor, dtype: str, place: int) -> tuple[Tensor, Quant, Tensor]:
    """Weights on a per-tensor grid of the data's type; the bias on the grid of data x weight."""
    low, high, _ = QUANTIZED[dtype]
    scale = float(np.float32(0.02))
    if place == 2:
        steps = float(np.float32(np.float32(STEP) * np.float32(scale)))
        ints = (value / steps).round().to(torch.int32)
        return ints, Quant("int32", (steps,), (0,), None, -(2**31), 2**31 - 1), ints.float() * steps
    zero = 128 if dtype == "uint8" else 0
    ints = ((value / scale).round() + zero).clamp(low, high)
    return ints.to(TORCH[dtype]), Quant(dtype, (scale,), (zero,), None, low, high), (ints - zero) * scale


def _output(name: str, case: Case, value: Tensor, dtype: str, out: str | None) -> tuple[Quant | None, float]:
    """The grid of an output and its step: the input's for moves, a fixed or a fitted one for arithmetic."""
    kind = out or case.more.get("out")
    if kind in ("int32", "bool", "float32", "int64") or (kind is None and dtype not in QUANTIZED):
        return None, 0.0
    store = dtype if kind is None else kind
    low, high, zero = QUANTIZED[store]
    if case.move:
        return Quant(dtype, (float(np.float32(STEP)),), (zero,), None, low, high), 0.0
    if name in FIXED:
        scale, signed = FIXED[name]
        return Quant(store, (scale,), (signed + 128 + low,), None, low, high), scale
    bottom, top = min(0.0, float(value.min())), max(0.0, float(value.max()))
    scale = float(np.float32(max(top - bottom, 1e-3) / 255))
    return Quant(store, (scale,), (round(low - bottom / scale),), None, low, high), scale
