# SPDX-License-Identifier: Apache-2.0
"""Site.rounded, what QModule.q asks before it calls the site as a module: the same numbers, or nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import pyquant
from pyquant.errors import InputError
from pyquant.policy import Policy
from pyquant.site import Phase
from pyquant.tree_state import phase as in_phase


def linear() -> tuple[Any, Tensor]:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    q = pyquant.prepare(nn.Linear(8, 8), Policy.preset("w8a8"))
    pyquant.calibrate(q, [x])
    return q, x


def test_rounded_equals_the_call() -> None:
    q, x = linear()
    site = q.site("act_in")
    assert site.rounded(x) is None  # still calibrating
    pyquant.convert(q)
    for value in (x, 3 * x, x.half(), x.bfloat16(), x.T, x.new_full((4,), torch.nan)):
        rounded = site.rounded(value)
        assert rounded is not None
        assert torch.equal(rounded, site(value))
    wide = x.clone().requires_grad_()
    q.q("act_in", 3 * wide).sum().backward()
    other = x.clone().requires_grad_()
    site(3 * other).sum().backward()
    assert torch.equal(wide.grad, other.grad)
    assert (wide.grad == 0).any()


def test_rounded_follows_new_numbers() -> None:
    q, x = linear()
    pyquant.convert(q)
    site, other = q.site("act_in"), copy.deepcopy(q)
    before = site.rounded(x)
    state = {name: t * 2 if name.endswith("act_in.scale") else t for name, t in q.state_dict().items()}
    other.load_state_dict(state)
    assert not torch.equal(other.site("act_in").rounded(x), before)
    assert torch.equal(other.site("act_in").rounded(x), other.site("act_in")(x))
    site.scale = site.scale * 4
    assert torch.equal(site.rounded(x), site(x))
    assert torch.equal(q.half().site("act_in").rounded(x), site(x))


@pytest.mark.filterwarnings("ignore:torch.autocast")
def test_rounded_leaves_what_is_more_to_the_call() -> None:
    q, x = linear()
    pyquant.convert(q)
    site = q.site("act_in")
    with site.tap(lambda site, x, out, **_: out + 1):
        assert site.rounded(x) is None
        assert torch.equal(q.q("act_in", x), site(x))
    assert site.rounded(x.long()) is None
    with pytest.raises(InputError, match="act_in"):
        q.q("act_in", x.long())
    with q.state.exporting():
        assert site.rounded(x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert site.rounded(x) is None
    seen: list[object] = []
    for register in (site.register_forward_hook, site.register_forward_pre_hook, register_module_forward_hook):
        handle = register(lambda *args: seen.append(args[0]))
        q.q("act_in", x)
        handle.remove()
    assert seen == [site] * 3
    with in_phase(q, Phase.FLOAT):
        assert site.rounded(x) is None
    assert site.rounded(x) is not None
