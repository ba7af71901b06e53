# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a fake_quantize node to a plan.Quant, and the grids on which a Python number is exact.

It owns which integer type a [qmin, qmax] means. Where a grid applies is propagate.py and lower/.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from pyquant import ops
from pyquant.errors import ExportError
from pyquant.exporter.plan import Quant
from pyquant.exporter.tracing import location_of

DEQUANTIZE = "pyquant.dequantize.default"
DEQUANTIZE_BLOCKS = "pyquant.dequantize_blocks.default"
FAKE_QUANTIZE = "pyquant.fake_quantize.default"
FAKE_QUANTIZE_BIAS = "pyquant.fake_quantize_bias.default"
FAKE_QUANTIZE_BLOCKS = "pyquant.fake_quantize_blocks.default"
#: plan type of a constant in blocks -> bits of its integers
BLOCKS = {"ggml_q4_0": 4, "ggml_q8_0": 8}

_TYPE_OF_RANGE = {
    (-7, 7): "int4",
    (-8, 7): "int4",
    (0, 15): "uint4",
    (-127, 127): "int8",
    (-128, 127): "int8",
    (0, 255): "uint8",
    (-32767, 32767): "int16",
    (-32768, 32767): "int16",
}
_FULL_RANGE = {"int4": (-8, 7), "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
#: plan type -> the torch type of one of its integers
STORAGE = {**ops.STORAGE, "int32": torch.int32, "int64": torch.int64}


def quant_of(
    scale: Tensor, zero_point: Tensor, axis: int | None, group: int, qmin: int, qmax: int, node: Node, site: str
) -> Quant:
    """The grid that a fake_quantize node names; `node` is for its rank and for messages, `site` for messages."""
    if group:
        raise ExportError(
            f"{site} is quantized in groups of {group}, and a Circle tensor has scales per tensor or channel "
            f"only (node '{node.name}', {location_of(node)}); give this weight PerAxis(0) in the policy"
        )
    dtype = _TYPE_OF_RANGE.get((qmin, qmax))
    if dtype is None:
        known = ", ".join(f"[{low}, {high}] {name}" for (low, high), name in _TYPE_OF_RANGE.items())
        raise ExportError(
            f"no Circle type is [{qmin}, {qmax}] of {site} (node '{node.name}', {location_of(node)}); known: {known}"
        )
    if axis is not None:
        axis %= len(node.meta["val"].shape)
    return Quant(dtype, _floats(scale), _ints(zero_point), axis, qmin, qmax)


def bias_quant(scale: Tensor, bits: int) -> Quant:
    """The grid of a bias: zero point 0, the scales of input x weight."""
    scales = _floats(scale)
    top = (1 << (bits - 1)) - 1
    axis = 0 if scale.dim() else None
    return Quant(f"int{bits}", scales, (0,) * len(scales), axis, -top - 1, top)


def exact_grid(number: float, like: Quant) -> Quant:
    """A grid of `like`'s type on which `number` is exactly one step (or zero) from the zero point."""
    scale = float(np.float32(abs(number))) or 1.0
    if not np.isfinite(scale):
        raise ExportError(f"the number {number} has no grid: it is not a finite float32; clamp it in the model")
    unsigned_negative = number < 0 and like.dtype.startswith("u")
    return Quant(like.dtype, (scale,), (1 if unsigned_negative else 0,), None, like.qmin, like.qmax)


def widest(dtypes: Iterable[str]) -> str:
    """The type of `dtypes` that can represent all grids: the one with the most bits, the signed one among equals."""
    return max(set(dtypes), key=lambda dtype: (int(dtype.lstrip("uint")), not dtype.startswith("u")))


def widened(quant: Quant, dtype: str) -> Quant:
    """The grid of the same scale in a wider type; every value of `quant` is on it."""
    if quant.dtype == dtype:
        return quant
    shift = 0
    if dtype != "int16" and quant.dtype.startswith("u") != dtype.startswith("u"):
        half = 1 << (int(quant.dtype.lstrip("uint")) - 1)
        shift = half if dtype.startswith("u") else -half if quant.dtype.lstrip("u") == dtype else 0
    zero_point = (0,) * len(quant.zero_point) if dtype == "int16" else tuple(z + shift for z in quant.zero_point)
    return Quant(dtype, quant.scale, zero_point, quant.axis, *_FULL_RANGE[dtype])


def scales(quant: Quant) -> tuple[Tensor, Tensor]:
    """`(scale, zero_point)` of a grid as the native operators take them: rank 0 per tensor, rank 1 per channel."""
    scale, zero_point = np.array(quant.scale, np.float32), np.array(quant.zero_point, np.int32)
    if quant.per_tensor:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return torch.from_numpy(scale), torch.from_numpy(zero_point)


def _floats(scale: Tensor) -> tuple[float, ...]:
    return tuple(scale.detach().float().reshape(-1).tolist())


def _ints(zero_point: Tensor) -> tuple[int, ...]:
    return tuple(zero_point.detach().reshape(-1).tolist())
