# SPDX-License-Identifier: Apache-2.0
"""Weights that change after prepare: what wrappers computed from them (folded kernels, clip bounds) is of the values
before, so calibrate and convert refuse; what a tree shares with the model counts."""

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
from pyquant.errors import PhaseError
from pyquant.weight import weights
from pyquant.wrap import Phase, QModule

IDS = tiny.positions((4, 4), (2, 8))
INPUTS = {"pixel_values": tiny.pixels(IDS), "pixel_position_ids": IDS}
CLIPPED = {"use_clipped_linears": True, "standardize": True}
KERNEL = "'patch_embedder.input_proj.weight'"
BOUND = "'encoder.layers.0.mlp.up_proj.output_max'"


def fresh(seed: int = 0) -> nn.Module:
    return tiny.randomized(tiny.vision(**CLIPPED), seed)


def prepared(model: nn.Module) -> Any:
    return pyquant.prepare(model, Policy.preset("w8a8"))


def out(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**INPUTS).last_hidden_state
    return result


def calibrate(q: QModule) -> None:
    pyquant.calibrate(q, [INPUTS], progress=False)


def converted(q: Any) -> Any:
    calibrate(q)
    pyquant.convert(q)
    return q


def load(model: Any) -> None:
    model.load_state_dict(fresh(7).state_dict())


def load_by_assignment(model: Any) -> None:
    model.load_state_dict(fresh(7).state_dict(), assign=True)


@torch.no_grad()
def edit(model: Any) -> None:
    model.patch_embedder.input_proj.weight.mul_(3)
    model.encoder.layers[0].mlp.up_proj.output_max.fill_(0.1)


@torch.no_grad()
def edit_storage(model: Any) -> None:
    model.patch_embedder.input_proj.weight.data = model.patch_embedder.input_proj.weight.detach() * 3


def replace(model: Any) -> None:
    model.patch_embedder.input_proj = copy.deepcopy(model.patch_embedder.input_proj)
    model.encoder.layers[0].mlp.up_proj.output_max = torch.tensor(0.1)


def cast(model: Any) -> None:
    model.bfloat16()


CHANGES = {
    load: (KERNEL, BOUND),
    load_by_assignment: (KERNEL, BOUND),
    edit: (KERNEL, BOUND),
    edit_storage: (KERNEL,),
    replace: (KERNEL, BOUND),
    cast: (KERNEL, BOUND),
}


def named(q: QModule) -> list[str]:
    return [f"'{path}'" for module in q.all_qmodules() for path in module.snapshot.changed()]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_edit_after_prepare_is_one_error_of_calibrate_and_of_convert(change: Callable[[nn.Module], None]) -> None:
    model = fresh()
    q, late = prepared(model), prepared(model)
    calibrate(late)
    change(model)
    said = rf"{KERNEL}.* of the float model changed after prepare .*; change the model first, then call pyquant.prepare"
    with pytest.raises(PhaseError, match=f"^calibrate: {said}"):
        calibrate(q)
    with pytest.raises(PhaseError, match=f"^convert: {said}"):
        pyquant.convert(late)
    assert set(CHANGES[change]) <= set(named(q))
    assert not q.state.converted
    assert not late.state.converted


def test_few_names_are_said_and_how_many_more() -> None:
    model = fresh()
    q = prepared(model)
    load(model)
    with pytest.raises(PhaseError, match=rf"^calibrate: ('[\w.]+', ){{4}}'[\w.]+' and {len(named(q)) - 5} more of"):
        calibrate(q)


@torch.no_grad()
def test_what_a_tree_shares_with_the_model_counts() -> None:
    late, early = fresh(), fresh()
    q = prepared(late)
    for model in (late, early):
        model.get_submodule("encoder.layers.0.mlp.up_proj.linear").get_parameter("weight").mul_(3)
    assert torch.equal(out(converted(q)), out(converted(prepared(early))))


def test_after_convert_nothing_matters() -> None:
    model = fresh()
    q = converted(prepared(model))
    want, clip = out(q), q.encoder.layers[0].mlp.up_proj.clip_out
    kernel = q.patch_embedder.input_proj.weight.clone()
    edit(model)
    with wrap.phase(q, Phase.FLOAT):
        out(q)
    assert torch.equal(q.patch_embedder.input_proj.weight, kernel)
    assert q.encoder.layers[0].mlp.up_proj.clip_out == clip
    assert torch.equal(out(q), want)
    assert named(q) == []


COPIES: dict[str, Callable[[QModule], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda q: pickle.loads(pickle.dumps(q)),
    "other-dtype": lambda q: q.to(torch.float64).to(torch.float32),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_values_of_before_and_no_snapshot(how: str) -> None:
    model = fresh()
    want = out(converted(prepared(fresh())))
    twin = COPIES[how](prepared(model))
    load(model)
    assert named(twin) == []
    assert torch.equal(out(converted(twin)), want)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_tree_whose_model_was_edited_is_not_usable_either(how: str) -> None:
    """It shares no tensor with the model, and has some of its values from before the edit, some from after."""
    model = fresh()
    q = prepared(model)
    edit(model)
    with pytest.raises(PhaseError, match=f"^calibrate: {KERNEL}, {BOUND} of the float model"):
        calibrate(COPIES[how](q))


def test_moving_to_where_it_is_already_keeps_the_snapshot_and_is_no_edit() -> None:
    model = fresh()
    q = prepared(model).to("cpu").float()
    model.to("cpu").float().eval().requires_grad_(False)
    calibrate(q)
    load(model)
    with pytest.raises(PhaseError, match="convert: "):
        pyquant.convert(q)


@torch.no_grad()
def test_own_edits_of_the_folded_kernel_are_kept() -> None:
    q, other = prepared(fresh()), prepared(fresh())
    q.patch_embedder.input_proj.weight.fill_(0.5)
    (weight,) = [weight for weight in weights(other) if weight.path == "patch_embedder.input_proj:weight"]
    weight.replace(torch.full_like(weight.value, 0.5))
    for tree in (q, other):
        with wrap.phase(converted(tree), Phase.FLOAT):
            out(tree)
        assert bool((tree.patch_embedder.input_proj.weight == 0.5).all())


def test_inference_mode_all_the_way() -> None:
    """Torch counts no edits of inference tensors; their values are compared."""
    with torch.inference_mode():
        model = fresh()
        q = converted(prepared(model))
        assert torch.equal(out(q), out(converted(prepared(fresh()))))
        late = prepared(model)
        edit(model)
        with pytest.raises(PhaseError, match=f"^calibrate: {KERNEL}, {BOUND} of the float model"):
            calibrate(late)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_that_is_loaded_into_a_tree_is_no_edit(assign: bool) -> None:
    """Bounds are numbers again: those that were loaded."""
    model, other = fresh(), prepared(fresh(7))
    q = prepared(model)
    q.load_state_dict(other.state_dict(), assign=assign)
    bounds = q.encoder.layers[0].mlp.up_proj.clip_out
    assert bounds == other.encoder.layers[0].mlp.up_proj.clip_out
    assert bounds != prepared(fresh()).encoder.layers[0].mlp.up_proj.clip_out
    assert torch.equal(out(converted(q)), out(converted(other)))


def test_bounds_of_a_saved_folder_are_its_own(tmp_path: Any) -> None:
    q = converted(prepared(fresh(7)))
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q", fresh())
    assert torch.equal(out(loaded), out(q))


def test_bounds_of_another_type_are_rounded_as_the_buffers_are() -> None:
    q = prepared(fresh()).to(torch.bfloat16)
    up = q.encoder.layers[0].mlp.up_proj
    assert up.clip_out == (float(up.output_min), float(up.output_max))
    assert up.output_max.dtype == torch.bfloat16


def test_snapshots_are_no_part_of_the_state() -> None:
    q = prepared(model := fresh())
    kernel = model.get_submodule("patch_embedder").get_submodule("input_proj").get_parameter("weight")
    held = [mark.tensor for mark in q.patch_embedder.snapshot._marks]
    assert [id(t) for t in held] == [id(kernel)]
    assert not any(t is kernel for t in (*q.parameters(), *q.buffers(), *q.state_dict().values()))


def test_without_its_float_model_a_tree_goes_on() -> None:
    q = prepared(fresh())
    assert named(q) == []
    assert torch.equal(out(converted(q)), out(converted(prepared(fresh()))))
