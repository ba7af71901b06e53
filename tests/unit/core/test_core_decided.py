# SPDX-License-Identifier: Apache-2.0
"""Decide once: a grid that is given to a site before convert stays, is saved and loaded, and is explained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import ToyBlock
from torch import Tensor

import pyquant
from pyquant import Policy
from pyquant.errors import CheckpointError, PolicyError
from pyquant.qparams import QParams
from pyquant.spec import INT4, INT8, PerAxis, PerTensor, QuantSpec

HOW = "computed by the test"
WEIGHT = QuantSpec(INT4, granularity=PerAxis(0))


def grid(spec: QuantSpec, *scale: float) -> QParams:
    values = torch.tensor(scale if isinstance(spec.granularity, PerAxis) else scale[0])
    return QParams(spec, values, torch.zeros_like(values, dtype=torch.int32))


def decided() -> Any:
    """`up` has an input of 8 bits with the scale .05, and 4-bit weights, in a tree whose policy has 16 and 8."""
    q = pyquant.prepare(ToyBlock(), Policy.preset("w8a16"))
    q.up.site("act_in").decide(grid(QuantSpec(INT8, symmetric=True), 0.05), HOW)
    q.up.site("weight").decide(grid(WEIGHT, *[0.04 + 0.01 * row for row in range(12)]), HOW)
    return q


def data(seed: int = 0) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))


def converted() -> Any:
    torch.manual_seed(0)
    q = decided()
    pyquant.calibrate(q, [(data(),)], progress=False)
    pyquant.convert(q)
    return q


def test_calibration_and_convert_leave_it_alone() -> None:
    q = converted()
    assert float(q.up.site("act_in").scale) == pytest.approx(0.05)
    assert q.up.site("weight").spec == WEIGHT
    assert torch.allclose(q.up.site("weight").scale, 0.04 + 0.01 * torch.arange(12))
    assert str(q.down.site("weight").spec.dtype) == "int8"
    x = q.up.site("act_in")(data() * 3)
    assert torch.equal(x, (x / 0.05).round() * 0.05)
    assert float(x.min()) >= -128 * 0.05001


def test_before_convert_values_pass_as_they_are() -> None:
    q = decided()
    assert torch.equal(q.up.site("act_in")(data()), data())
    assert q.up.site("act_in") not in q.uncalibrated_sites()


def test_saved_and_loaded_it_is_the_recorded_format_not_the_policys(tmp_path: Path) -> None:
    q = converted()
    pyquant.save_quantized(q, tmp_path / "q")
    back = pyquant.load_quantized(tmp_path / "q", ToyBlock())
    assert torch.equal(back(data(1)), q(data(1)))
    assert [site.decided for site in back.all_sites()] == [site.decided for site in q.all_sites()]
    assert str(back.policy.explain(back)) == str(q.policy.explain(q))
    assert torch.equal(copy.deepcopy(back)(data(1)), q(data(1)))


def test_an_index_that_names_another_format_is_refused(tmp_path: Path) -> None:
    pyquant.save_quantized(converted(), tmp_path / "q")
    index = tmp_path / "q" / "quantization.json"
    index.write_text(index.read_text().replace(f'"decided": "{HOW}"', '"decided": 3'))
    with pytest.raises(CheckpointError, match=r"'decided' of site .* is a int, expected a string"):
        pyquant.load_quantized(tmp_path / "q", ToyBlock())


def test_state_dicts_go_from_tree_to_tree() -> None:
    q = converted()
    other = converted()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(data(1)), q(data(1)))
    decided().load_state_dict(decided().state_dict())


def test_explain_names_who_decided_and_which_rule_did_not() -> None:
    q = decided()
    (row,) = [row for row in str(q.policy.explain(q)).splitlines() if row.startswith("up:act_in")]
    assert f"{HOW} (not #0 *)" in row
    assert row.endswith("int8 symmetric per-tensor            decided")


def test_a_site_in_blocks_or_float_takes_none() -> None:
    q = pyquant.prepare(torch.nn.Linear(32, 4), Policy.preset("w4_onert"))
    for name in ("weight", "act_in"):
        with pytest.raises(PolicyError, match=f"':{name}' cannot take a grid: the policy gives it"):
            q.site(name).decide(grid(QuantSpec(INT8, granularity=PerTensor()), 0.1), HOW)
