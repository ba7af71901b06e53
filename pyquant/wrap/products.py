# SPDX-License-Identifier: Apache-2.0
"""Matrix products while statistics are taken: those of 16-bit floats in float32, where the CPU has none of its own.

It owns which product runs and how a weight is widened some rows at a time. On such a CPU torch multiplies bfloat16 and
float16 one by one, 7 times (linear) to 50 times (batched) as slow as in float32, conversions included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDENED = 1 << 20  # elements of a weight that are float32 at a time
_FEW = 8  # rows: a weight that is read for fewer is not worth widening


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, statistics: bool) -> Tensor:
    """F.linear(x, weight, bias); x (..., in_features), weight (out_features, in_features).

    statistics: the values are observed and no file, no exported program has to repeat them, so that the product may be
    the float32 one, rounded to x's type once. It is nearer to the exact product than torch's own, and the same however
    many rows are widened at a time.
    """
    if statistics and _is_slow(x) and x.numel() >= _FEW * x.shape[-1]:
        return wide_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor, *, statistics: bool) -> Tensor:
    """torch.matmul(a, b); statistics: see linear()."""
    if statistics and _is_slow(a):
        return torch.matmul(a.float(), b.float()).to(a.dtype)
    return torch.matmul(a, b)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None, widened: int = _WIDENED) -> Tensor:
    """The float32 product of 16-bit floats, rounded once; `widened` elements of the weight are float32 at a time."""
    out, wide = x.new_empty(*x.shape[:-1], weight.shape[0]), x.float()
    step = max(1, widened // max(1, weight.shape[1]))
    for at in range(0, weight.shape[0], step):
        rows = slice(at, at + step)
        out[..., rows] = F.linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
    return out


def _is_slow(x: Tensor) -> bool:
    """Whether torch has no fast product of this type here. Where a gradient may be wanted it is torch's own."""
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )
