# SPDX-License-Identifier: Apache-2.0
"""A block that was initialised to zeros: what the error of convert proposes leads to a file."""

from __future__ import annotations

import re
from typing import Any

import pytest
import qwen_text_tiny as tiny
import torch

import pyquant
from pyquant import ObserverSpec, Policy, Rule
from pyquant.errors import CalibrationError
from pyquant.models.qwen3_vl import TextProfile

UNREACHED = (":deepstack_?", "embed_tokens:act_out")
ZERO = ("self_attn.o_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.gate_proj")


def convert(fp: Any, policy: Policy, batch: dict[str, torch.Tensor]) -> Any:
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q, unused=UNREACHED)
    return q


@pytest.mark.parametrize("preset", ["w8a8", "w8a16"])
@pytest.mark.parametrize("part", ZERO)
def test_the_rule_of_the_message_gives_a_whole_file(part: str, preset: str) -> None:
    fp: Any = tiny.text(num_hidden_layers=2)
    with torch.no_grad():
        fp.layers[1].get_submodule(part).weight.zero_()
    batch = {"inputs_embeds": tiny.states(tiny.BATCHES["one"])}
    policy = Policy.preset(preset)
    with pytest.raises(CalibrationError, match="saw only zeros") as caught:
        convert(fp, policy, batch)
    proposed = re.findall(r'Rule\("(\S+)", spec=..., observer=ObserverSpec\("fixed", ', str(caught.value))
    assert f"layers.1.{part}:act_out" in proposed
    act = policy.rules[0].spec
    fixed = ObserverSpec("fixed", {"lo": -1, "hi": 1})
    q = convert(fp, policy.with_rule(*(Rule(path, spec=act, observer=fixed) for path in proposed)), batch)
    program = pyquant.export(q, TextProfile(1, 9))
    assert program.missing_qparams() == []
    assert any(tensor.name.startswith(f"layers.1.{part}") for tensor in program.graph.tensors)
    with torch.no_grad():
        got, want = q(**batch).last_hidden_state, fp(**batch).last_hidden_state
    assert pyquant.verify.sqnr_db(want, got) > {"w8a8": 12, "w8a16": 30}[preset]


@pytest.mark.parametrize("part", ZERO)
def test_float_by_a_rule_exports_too(part: str) -> None:
    fp: Any = tiny.text(num_hidden_layers=2)
    with torch.no_grad():
        fp.layers[1].get_submodule(part).weight.zero_()
    batch = {"inputs_embeds": tiny.states(tiny.BATCHES["one"])}
    with pytest.raises(CalibrationError) as caught:
        convert(fp, Policy.preset("w8a8"), batch)
    zero = re.findall(r"^  (\S+): saw only zeros", str(caught.value), re.MULTILINE)
    q = convert(fp, Policy.preset("w8a8").with_rule(*(Rule(path) for path in zero)), batch)
    program = pyquant.export(q, TextProfile(1, 9))
    assert [tensor.name for tensor in program.graph.tensors if tensor.is_float]
