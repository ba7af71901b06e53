# SPDX-License-Identifier: Apache-2.0
"""gram_accumulate_ and gptq_solve in plain torch operations; see reference.py.

It owns the fused multiply-add in torch. gptq_solve equals the CPU kernel bit for bit; gram_accumulate_ is the product
of the device's own library, whose order of sums is not ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import OpArgumentError
from pyquant.ops import _checks
from pyquant.ops.gptq import check_solve
from pyquant.ops.gram import check_gram
from pyquant.ops.reference import round_half_away, spread, wide

_ROWS = 256


def gram_accumulate_(gram: Tensor, x: Tensor) -> None:
    check_gram("gram_accumulate_", gram, x)
    if x.numel() == 0:
        return
    rows = x.reshape(-1, x.shape[-1])
    for at in range(0, len(rows), _ROWS):
        values = rows[at : at + _ROWS].float()
        gram += values.T @ values
    gram.copy_(gram.triu() + gram.triu(1).T)


def gptq_solve(
    weight: Tensor, hinv: Tensor, scale: Tensor, zero_point: Tensor, group: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    op = "gptq_solve"
    check_solve(op, weight, hinv, scale, zero_point, group, qmin, qmax)
    _checks.check_values(op, scale, zero_point, qmin, qmax)
    if weight.device.type == "cpu":
        for j, d in enumerate(hinv.diagonal().tolist()):
            if not 0.0 < d < torch.inf:
                raise OpArgumentError(
                    f"{op}: hinv[{j}, {j}] is {d:g}; expected the upper Cholesky factor of an inverse Hessian, whose "
                    "diagonal is positive; damp the Hessian more"
                )
    scale, zero_point = (spread(t, weight, 1 if group else 0, group).expand_as(weight) for t in (scale, zero_point))
    w = weight.clone(memory_format=torch.contiguous_format)
    integers = torch.empty_like(w, dtype=torch.int32)
    loss = wide(w.new_zeros(w.shape[0]))
    for j in range(w.shape[1]):
        zero = zero_point[:, j].float()
        v = round_half_away(w[:, j] / scale[:, j]) + zero
        q = torch.where(v > qmin, torch.where(v < qmax, v, qmax), qmin)
        error = (w[:, j] - (q - zero) * scale[:, j]) / hinv[j, j]
        integers[:, j] = q.int()
        loss += wide(error) * wide(error)
        w[:, j + 1 :] = fused(hinv[j, j + 1 :], -error[:, None], w[:, j + 1 :])
    return integers, (0.5 * loss).float().to(w.device)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a * b + c` of float32 values, rounded once: in float64, to odd, and then to float32 (Boldo, Melquiond 2008)."""
    product, more = wide(a) * wide(b), wide(c)  # the product is exact
    total = product + more
    back = total - product
    rest = (product - (total - back)) + (more - back)  # exact too (Knuth's two-sum)
    bits = total.contiguous().view(torch.int64)
    toward = torch.where((rest > 0) == (total > 0), 1, -1)
    odd = torch.where((rest != 0) & rest.isfinite() & (bits % 2 == 0), bits + toward, bits)
    return odd.view(torch.float64).float().to(c.device)
