# SPDX-License-Identifier: Apache-2.0
"""Block formats from a rule to a quantized tree: what a BlockSpec is, which sites take one, caching, checkpoints."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import pyquant
from pyquant import BlockSpec, ObserverSpec, Policy, Rule, ops
from pyquant.block_site import BlockSite
from pyquant.errors import CalibrationError, PolicyError, SpecError
from pyquant.role import Role
from pyquant.spec import INT4, INT8, PerGroup, QuantSpec
from pyquant.wrap import Phase, phase

NAMES = ("q4_0", "q8_0")


def policy(name: str, role: str = "weight") -> Policy:
    return Policy((Rule("*", role=role, spec=BlockSpec(name)),))


def linear(columns: int = 64) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(columns, 24).eval()


def quantized(fp: nn.Module, rules: Policy, *batches: torch.Tensor) -> pyquant.wrap.QModule:
    q = pyquant.prepare(fp, rules)
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return q


def test_a_block_spec_is_a_format_of_its_own() -> None:
    spec = BlockSpec("q4_0")
    assert (spec.dtype, spec.bits, spec.symmetric, spec.granularity) == (INT4, 4, True, PerGroup(-1, 32))
    assert BlockSpec("q8_0").dtype == INT8
    assert spec == BlockSpec("q4_0") != BlockSpec("q8_0")
    assert spec != QuantSpec(INT4, True, PerGroup(-1, 32))
    assert len({spec, BlockSpec("q4_0"), BlockSpec("q8_0")}) == 2
    assert str(spec) == "q4_0 blocks"
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert QuantSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(SpecError, match="block format 'q5_1' does not exist here; choose one of q4_0, q8_0"):
        BlockSpec("q5_1")
    with pytest.raises(SpecError, match=r"type 'q5_1' does not exist here; choose one of .*int8.*q4_0, q8_0"):
        QuantSpec.from_dict({"dtype": "q5_1"})
    with pytest.raises(SpecError, match=r"q4_0 is a whole format and takes no other key, got \['dtype', 'symmetric'\]"):
        QuantSpec.from_dict({"dtype": "q4_0", "symmetric": True})


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SpecError, match="are for the roles weight and embedding, got activation"):
        policy("q4_0", "activation")
    with pytest.raises(SpecError, match="q8_0 blocks find their own scales; leave out the observer"):
        Rule("*", role="weight", spec=BlockSpec("q8_0"), observer=ObserverSpec("mse"))
    with pytest.raises(PolicyError, match=r"rule #0 .* does not fit the activation site ':act_in'"):
        pyquant.prepare(linear(), Policy((Rule("*", spec=BlockSpec("q4_0")),)))
    with pytest.raises(
        PolicyError,
        match=r"site ':weight' cannot have its format: q4_0 blocks take rows of .* 32 .*\(24, 40\)",
    ):
        pyquant.prepare(linear(40), policy("q4_0"))


def test_policies_with_blocks_are_data(tmp_path: Path) -> None:
    for name in ("rules.yaml", "rules.json"):
        policy("q8_0").save(tmp_path / name)
        assert Policy.load(tmp_path / name) == policy("q8_0")
    assert "q8_0 blocks" in str(policy("q8_0").explain(pyquant.prepare(linear(), policy("q8_0"))))


@pytest.mark.parametrize("name", NAMES)
def test_eager_computes_with_what_the_blocks_hold(name: str, calls: Counter[str]) -> None:
    fp, x = linear(), torch.randn(5, 64)
    q = quantized(fp, policy(name), x)
    assert isinstance(q.site("weight"), BlockSite)
    assert q.site("weight").qparams is None
    stored = ops.dequantize_blocks(ops.quantize_blocks(fp.weight, BlockSpec(name).bits), BlockSpec(name).bits)
    calls.clear()
    for _ in range(2):
        torch.testing.assert_close(q(x), F.linear(x, stored, fp.bias), rtol=0, atol=0)
    assert calls["fake_quantize_blocks"] == 1  # the second call reads the cache
    with phase(q, Phase.FLOAT):
        assert torch.equal(q(x), fp(x))
    with torch.no_grad():
        fp.weight.mul_(2)
    torch.testing.assert_close(q(x), F.linear(x, 2 * stored, fp.bias), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_looked_up_in_blocks(name: str) -> None:
    fp, ids = nn.Embedding(9, 32), torch.randint(0, 9, (2, 4))
    q = quantized(fp, policy(name, "embedding"), ids)
    assert torch.equal(q(ids), ops.fake_quantize_blocks(fp.weight.detach(), BlockSpec(name).bits)[ids])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_checkpoint_brings_back_the_same_outputs(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    fp, x = linear().to(dtype), torch.randn(5, 64).to(dtype)
    q = quantized(fp, policy(name), x)
    pyquant.save_quantized(q, tmp_path / "saved")
    again = pyquant.load_quantized(tmp_path / "saved", linear().to(dtype))
    assert torch.equal(again(x), q(x))
    stored = load_file(tmp_path / "saved" / "quantized.safetensors")["weight"]
    if dtype is torch.float32:  # whose values no rounding hides
        assert torch.equal(stored, ops.quantize_blocks(fp.weight, BlockSpec(name).bits))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e9])
def test_a_weight_that_no_block_holds_is_told_by_convert(value: float) -> None:
    fp = linear()
    with torch.no_grad():
        fp.weight[3, 40] = value
    q = pyquant.prepare(fp, policy("q8_0"))
    pyquant.calibrate(q, [torch.zeros(2, 64)], progress=False) if value == 1e9 else None
    with pytest.raises(CalibrationError, match=r"(?s):weight: its constant has no q8_0 blocks: .*too large.*repair"):
        pyquant.convert(q)


def test_a_block_site_takes_constants_only() -> None:
    with pytest.raises(SpecError, match="are for the roles weight and embedding"):
        BlockSite("a:act_in", Role.ACTIVATION, BlockSpec("q4_0"))
