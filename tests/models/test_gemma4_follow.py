# SPDX-License-Identifier: Apache-2.0
"""Weights that change after prepare: what wrappers derived from them (folded kernels, clip bounds) follows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gemma4_tiny as tiny
import pytest
import torch
from torch import nn

import pyquant
from pyquant import Policy, wrap
from pyquant.wrap import Phase, QModule

IDS = tiny.positions((4, 4), (2, 8))
INPUTS = {"pixel_values": tiny.pixels(IDS), "pixel_position_ids": IDS}
CLIPPED = {"use_clipped_linears": True, "standardize": True}


def fresh(seed: int = 0) -> nn.Module:
    return tiny.randomized(tiny.vision(**CLIPPED), seed)


def out(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**INPUTS).last_hidden_state
    return result


def converted(q: QModule) -> QModule:
    pyquant.calibrate(q, [INPUTS], progress=False)
    pyquant.convert(q)
    return q


def load(model: nn.Module) -> None:
    model.load_state_dict(fresh(7).state_dict())


@torch.no_grad()
def edit(model: Any) -> None:
    model.patch_embedder.input_proj.weight.mul_(3)
    model.encoder.layers[0].mlp.up_proj.output_max.fill_(0.1)


@torch.no_grad()
def edit_storage(model: Any) -> None:
    model.patch_embedder.input_proj.weight.data = model.patch_embedder.input_proj.weight.detach() * 3


@pytest.mark.parametrize("change", [load, edit, edit_storage])
def test_weights_that_change_after_prepare_give_what_they_would_have_given_before(
    change: Callable[[nn.Module], None],
) -> None:
    late, early = fresh(), fresh()
    q = pyquant.prepare(late, Policy.preset("w8a8"))
    change(late)
    change(early)
    want = pyquant.prepare(early, Policy.preset("w8a8"))
    assert torch.equal(out(q), out(want))
    assert torch.equal(out(converted(q)), out(converted(want)))


def test_a_change_between_calibrate_and_convert_is_taken_up_by_the_weights() -> None:
    model = fresh()
    q = pyquant.prepare(model, Policy.preset("w8a8"))
    pyquant.calibrate(q, [INPUTS], progress=False)
    edit(model)
    pyquant.convert(q)
    kernel = 2 * model.patch_embedder.input_proj.weight  # type: ignore[union-attr, operator]
    assert torch.equal(q.patch_embedder.input_proj.weight, kernel)
    assert q.encoder.layers[0].mlp.up_proj.clip_out[1] == pytest.approx(0.1)


def test_after_convert_what_was_derived_stays() -> None:
    model = fresh()
    q = converted(pyquant.prepare(model, Policy.preset("w8a8")))
    kernel, clip = q.patch_embedder.input_proj.weight.clone(), q.encoder.layers[0].mlp.up_proj.clip_out
    edit(model)
    with wrap.phase(q, Phase.FLOAT):
        out(q)
    out(q)
    assert torch.equal(q.patch_embedder.input_proj.weight, kernel)
    assert q.encoder.layers[0].mlp.up_proj.clip_out == clip


def test_entering_a_phase_takes_changes_up() -> None:
    model = fresh()
    q = pyquant.prepare(model, Policy.preset("w8a8"))
    edit(model)
    with wrap.phase(q, Phase.FLOAT):
        assert torch.equal(
            q.patch_embedder.input_proj.weight,
            2 * model.patch_embedder.input_proj.weight,  # type: ignore[union-attr, operator]
        )
        torch.testing.assert_close(out(q), out(model))


COPIES: dict[str, Callable[[QModule], QModule]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda q: pickle.loads(pickle.dumps(q)),
    "other-dtype": lambda q: q.to(torch.float64).to(torch.float32),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_changes_so_far_and_follows_no_more(how: str) -> None:
    model = fresh()
    q = pyquant.prepare(model, Policy.preset("w8a8"))
    edit(model)
    twin = COPIES[how](q)
    want = out(model)
    load(model)
    with wrap.phase(twin, Phase.FLOAT):
        torch.testing.assert_close(out(twin), want)


def test_moving_to_where_it_is_already_keeps_following() -> None:
    model = fresh()
    q = pyquant.prepare(model, Policy.preset("w8a8")).to("cpu").float()
    load(model)
    with wrap.phase(q, Phase.FLOAT):
        torch.testing.assert_close(out(q), out(model))


@torch.no_grad()
def test_an_own_edit_of_the_derived_kernel_is_kept() -> None:
    q = pyquant.prepare(fresh(), Policy.preset("w8a8"))
    q.patch_embedder.input_proj.weight.fill_(0.5)
    converted(q)
    assert bool((q.patch_embedder.input_proj.weight == 0.5).all())


def test_inference_mode_all_the_way() -> None:
    with torch.inference_mode():
        model = fresh()
        q = pyquant.prepare(model, Policy.preset("w8a8"))
        load(model)
        converted(q)
    want = converted(pyquant.prepare(fresh(7), Policy.preset("w8a8")))
    assert torch.equal(out(q), out(want))


def test_sources_are_no_part_of_the_state() -> None:
    q = pyquant.prepare(fresh(), Policy.preset("w8a8"))
    owned = {id(t) for t in (*q.parameters(), *q.buffers())}
    assert len(q.patch_embedder.sources.tensors) == 1
    assert not any(id(t) in owned for t in q.patch_embedder.sources.tensors)
    converted(q)
    assert q.patch_embedder.sources.tensors == ()
