# SPDX-License-Identifier: Apache-2.0
"""Where a signal is lost: faults planted in one place of a tree are found there, not in what comes after them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import pyquant
from pyquant import models
from pyquant.trace import Loss, capture, compare, counterparts, losses, render_losses, sites
from pyquant.wrap import QModule

GATE = "model.language_model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module", name="fp")
def _fp() -> nn.Module:
    return models.by_name("qwen3_vl").example.tiny_model()


@pytest.fixture(scope="module", name="batch")
def _batch(fp: nn.Module) -> dict[str, torch.Tensor]:
    return models.by_name("qwen3_vl").example.example_inputs(fp)


@pytest.fixture(name="q")
def _q(fp: nn.Module, batch: dict[str, torch.Tensor]) -> QModule:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    pyquant.calibrate(q, [batch], progress=False)
    dry = [site.path for site in q.all_sites() if site.observer is not None and isinstance(site.compute_qparams(), str)]
    pyquant.convert(q, unused=dry)
    return q


def found(fp: nn.Module, q: QModule, batch: dict[str, torch.Tensor]) -> tuple[Loss, ...]:
    pairs = counterparts(fp, q)
    with capture(fp, batch, tensors="*") as a, capture(q, batch, sorted(pairs), tensors=sorted(pairs)) as b:
        pass
    return losses(a, b, compare(a, b, pairs, loose_shapes=True), pairs)


def zero_weight(q: QModule) -> None:
    linear = q.get_submodule(GATE)
    linear.weight = nn.Parameter(torch.zeros_like(linear.weight))


def coarse(q: QModule) -> None:
    site = q.get_submodule(GATE).site("act_out")
    qparams = site.qparams
    assert qparams is not None
    site.set_qparams(dataclasses.replace(qparams, scale=qparams.scale * 10))


@pytest.mark.parametrize("plant", [zero_weight, coarse])
def test_a_planted_fault_comes_first(
    plant: Callable[[QModule], None], fp: nn.Module, q: QModule, batch: dict[str, torch.Tensor]
) -> None:
    before = found(fp, q, batch)
    assert all(0 <= loss.lost < 0.02 for loss in before)
    plant(q)
    after = found(fp, q, batch)
    assert after[0].module == GATE
    assert after[0].lost > 10 * next(loss.lost for loss in before if loss.module == GATE)
    text = render_losses(after[:2])
    assert GATE in text.splitlines()[2]


def test_what_came_in_noisy_is_no_loss(fp: nn.Module, q: QModule, batch: dict[str, torch.Tensor]) -> None:
    zero_weight(q)
    by_name = {loss.module: loss for loss in found(fp, q, batch)}
    act = by_name[GATE.replace("gate_proj", "act_fn")]  # of zeros, zeros: all was lost before
    assert act.sqnr_in <= 0.01
    assert act.lost < 0.01
    assert by_name[GATE.removesuffix(".gate_proj")].lost < 0.01  # of the whole MLP's, the gate's is not its own


def test_a_trace_against_itself_loses_nothing(fp: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with capture(fp, batch, tensors="*") as a:
        pass
    said = losses(a, a, compare(a, a))
    assert said
    assert all(loss.lost == 0 and loss.sqnr_out == math.inf for loss in said)
    assert len(losses(a, a, compare(a, a), count=3)) == 3


def test_nan_of_one_side_is_all_lost(fp: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with capture(fp, batch, tensors="*") as a:
        pass
    act = fp.get_submodule(GATE.replace("gate_proj", "act_fn"))
    handle = act.register_forward_pre_hook(lambda module, args: (args[0].index_fill(-1, torch.tensor([0]), math.nan),))
    with capture(fp, batch, tensors="*") as b:
        pass
    handle.remove()
    first = losses(a, b, compare(a, b))[0]
    assert first.module.startswith(GATE.removesuffix(".gate_proj"))
    assert first.lost == 1
    assert first.problem is not None
    assert "NaN" in first.problem


def test_a_causal_mask_is_no_bad_site(q: QModule, batch: dict[str, torch.Tensor]) -> None:
    """Found on the tiny Qwen3-VL: what a mask hides counted as clipped, and three healthy sites came first."""
    measured = sites(q, batch)
    masked = [record for record in measured if record.path.endswith(":masked_logits") and record.calls]
    assert masked
    for record in masked:
        assert record.left_out > 0
        assert record.clipped is not None
        assert record.clipped < 0.01
        assert record.sqnr is not None
        assert record.sqnr > 20
    assert not {record.path for record in measured.worst(3)} & {record.path for record in masked}
