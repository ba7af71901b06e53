# SPDX-License-Identifier: Apache-2.0
"""Rotary without negation: equal to transformers' own rotations bit for bit, and one site per operator."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import apply_multidimensional_rope, apply_rotary_pos_emb
from wrap_cases import set_qparams

import pyquant
from pyquant.wrap import WrapContext
from pyquant.wrap.rotary import Rotary, RotaryTables

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rotary(parts: int) -> Rotary:
    return Rotary(WrapContext("attn.q_rotary", pyquant.Policy.preset("w8a16")), parts=parts).eval()


def tables(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(2, 5, 8)  # not even consistent between the halves: nothing may rely on that
    return angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2], ids=["text", "axial"])
def test_rotation_is_transformers_bit_for_bit(parts, dtype):
    torch.manual_seed(0)
    x, (cos, sin) = torch.randn(2, 5, 3, 8).to(dtype), tables(dtype)
    if parts == 1:
        expected = apply_rotary_pos_emb(x, cos, sin, unsqueeze_dim=2)
    else:
        expected = apply_multidimensional_rope(x, cos, sin, torch.zeros(2, 5, 2, dtype=torch.long))
    before = sin.clone()
    assert torch.equal(rotary(parts)(x, RotaryTables.of((cos, sin), parts)), expected)
    assert torch.equal(sin, before)


def test_tables_are_taken_as_they_are_the_second_time():
    once = RotaryTables.of(tables(torch.float32), parts=2)
    assert RotaryTables.of(once, parts=2) is once


def test_the_graph_has_no_negation_and_each_site_once():
    torch.manual_seed(0)
    q, x = rotary(2), torch.randn(2, 5, 3, 8)
    t = RotaryTables.of(tables(torch.float32), parts=2)
    q(x, t)
    set_qparams(q)
    graph = torch.export.export(q, (x, t), strict=False).graph
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert targets.count("pyquant.fake_quantize.default") == len(list(q.all_sites())) == 5
    moves, arithmetic = {"aten.slice.Tensor", "aten.cat.default"}, {"aten.mul.Tensor", "aten.add.Tensor"}
    assert {t for t in targets if t.startswith("aten.")} == moves | arithmetic


def test_tables_beyond_one_are_observed_where_the_model_scales_them():
    torch.manual_seed(0)
    cos, sin = (1.3 * t for t in tables(torch.float32))
    x, context = torch.randn(2, 5, 3, 8), WrapContext("attn.q_rotary", pyquant.Policy.preset("w8a16"))
    q = Rotary(context, unit=False).eval()
    expected = q(x, RotaryTables.of((cos, sin), parts=1))
    set_qparams(q)
    assert float(q.site("cos").qparams.scale) * 32767 == pytest.approx(float(cos.abs().max()), rel=1e-4)
    torch.testing.assert_close(q(x, RotaryTables.of((cos, sin), parts=1)), expected, rtol=1e-3, atol=1e-3)
