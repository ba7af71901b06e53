# SPDX-License-Identifier: Apache-2.0
"""Products of 16-bit floats while statistics are taken: the exact product rounded once, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyquant
from pyquant.policy import Policy
from pyquant.wrap import Phase, products
from pyquant.wrap import phase as in_phase

HALVES = [torch.bfloat16, torch.float16]


def inputs(dtype: torch.dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=random) for s in (shape, (37, shape[-1]), (37,)))
    return x.to(dtype), w.to(dtype), b.to(dtype)


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without products of 16-bit floats, whatever runs the test."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("widened", [1, 24, 100, 1 << 20])
def test_wide_linear_is_the_product_rounded_once(dtype: torch.dtype, widened: int) -> None:
    x, w, b = inputs(dtype, 2, 9, 24)
    out = products.wide_linear(x, w, b, widened)
    assert out.dtype == dtype
    exact = F.linear(x.double(), w.double(), b.double())
    rounded = exact.to(dtype)
    assert (out == rounded).float().mean() > 0.99
    # Elsewhere float32 rounded across the middle of two neighbours: half a step, and the float32 sum's own error.
    step = torch.finfo(dtype).eps * exact.abs()
    assert ((out.double() - exact).abs() <= 0.501 * step + 24 * 2**-23).all()
    assert torch.equal(products.wide_linear(x, w, None, widened), products.wide_linear(x, w, None, 24))


@pytest.mark.usefixtures("slow_cpu")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_only_statistics_are_computed_so(dtype: torch.dtype) -> None:
    x, w, b = inputs(dtype, 64, 96)
    with torch.no_grad():
        assert torch.equal(products.linear(x, w, b, statistics=True), products.wide_linear(x, w, b))
        assert torch.equal(products.linear(x, w, b, statistics=False), F.linear(x, w, b))
        assert torch.equal(products.linear(x[:7], w, b, statistics=True), F.linear(x[:7], w, b))
        wide = torch.matmul(x.float(), w.T.float()).to(dtype)
        assert torch.equal(products.matmul(x, w.T, statistics=True), wide)
        assert torch.equal(products.matmul(x, w.T, statistics=False), torch.matmul(x, w.T))
        f = (x.float(), w.float(), b.float())
        assert torch.equal(products.linear(*f, statistics=True), F.linear(*f))
    w.requires_grad_()
    products.linear(x, w, b, statistics=True).sum().backward()
    assert w.grad is not None


@pytest.mark.usefixtures("slow_cpu")
def test_calibration_of_a_bfloat16_linear_observes_the_rounded_product() -> None:
    x, w, b = inputs(torch.bfloat16, 64, 96)
    fp = nn.Linear(96, 37).bfloat16()
    with torch.no_grad():
        fp.weight.copy_(w)
        fp.bias.copy_(b)
    q = pyquant.prepare(fp, Policy.preset("w8a16"))
    pyquant.calibrate(q, [x])
    lo, hi = q.site("act_out").observer.range()
    out = products.wide_linear(x, w, b).float()
    assert (float(lo), float(hi)) == (float(out.min()), float(out.max()))
    with torch.no_grad(), in_phase(q, Phase.FLOAT):
        assert torch.equal(q(x), fp(x))
