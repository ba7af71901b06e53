# SPDX-License-Identifier: Apache-2.0
"""Adapters of the vision model own what they precomputed; every profile gives what eager gives."""

from __future__ import annotations

import copy

import pytest
import torch
from gemma4_tiny import pixels, positions, vision

import pyquant
from pyquant.models.gemma4 import VisionProfile
from pyquant.wrap import Phase, phase


def converted(preset: str = "w8a8", **overrides):
    fp = vision(**overrides)
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    batches = [inputs(positions(*grids)) for grids in (((4, 4),), ((4, 4), (2, 8)), ((8, 2),))]
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return fp, q


def inputs(ids, seed=1):
    return {"pixel_values": pixels(ids, seed=seed), "pixel_position_ids": ids}


@pytest.fixture(scope="module")
def tree():
    return converted(standardize=True, use_clipped_linears=True)


PROFILES = {
    "one": VisionProfile(grid=(4, 4)),
    "tall": VisionProfile(grid=(8, 2)),
    "batch_of_equals": VisionProfile(grid=(4, 4), batch_size=3),
    "batch_of_grids": VisionProfile(grid=((4, 4), (2, 8))),
    "padded": VisionProfile(grid=(4, 4), num_patches=24),
    "batch_of_equals_padded": VisionProfile(grid=(2, 4), batch_size=2, num_patches=12),
    "ragged": VisionProfile(grid=((4, 4), (2, 2), (2, 6))),
    # Not row by row, and with a patch missing: positions are what counts, as in transformers.
    "shuffled": VisionProfile(pixel_position_ids=positions((4, 4))[:, torch.randperm(16)]),
    "partly_filled_pool": VisionProfile(pixel_position_ids=positions((4, 4))[:, :15], num_patches=16),
}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_static_is_eager_bit_for_bit(tree, profile):
    _, q = tree
    given = inputs(profile.positions)
    with torch.no_grad():
        eager = q(**given).last_hidden_state
        assert torch.equal(q.as_export_module(profile)(given["pixel_values"]), eager)


def test_a_second_profile_changes_nothing_in_the_first(tree):
    _, q = tree
    first = q.as_export_module(PROFILES["one"])
    x = pixels(PROFILES["one"].positions)
    with torch.no_grad():
        before = first(x)
        buffers = {name: buffer.clone() for name, buffer in first.tables.named_buffers()}
        graph = pyquant.export(q, PROFILES["one"]).graph
        state = {name: t.clone() for name, t in q.state_dict().items()}
        second = q.as_export_module(PROFILES["ragged"])
        second(pixels(PROFILES["ragged"].positions))
        pyquant.export(q, PROFILES["padded"])
        assert torch.equal(first(x), before)
        again = pyquant.export(q, PROFILES["one"]).graph
        assert again.to_json() == graph.to_json()
        assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(again.constants, graph.constants, strict=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in first.tables.named_buffers())
    assert all(torch.equal(t, state[name]) for name, t in q.state_dict().items())
    mine = {t.data_ptr() for t in first.tables.buffers()}
    assert not mine & {t.data_ptr() for t in (*second.tables.buffers(), *q.parameters(), *q.buffers())}


def test_an_adapter_shares_the_wrappers_and_owns_its_tables(tree):
    _, q = tree
    adapter = q.as_export_module(PROFILES["padded"])
    assert adapter.module is q
    names = {name for name, _ in adapter.tables.named_buffers()}
    assert names == {"position_embeddings", "cos", "signed_sin", "mask_values", "pool_weight"}
    assert q.as_export_module(PROFILES["one"]).tables.mask is None


def test_equal_images_of_a_batch_share_their_tables(tree):
    _, q = tree
    shared = q.as_export_module(PROFILES["batch_of_equals"]).tables
    assert {t.shape[0] for t in shared.buffers()} == {1}
    assert q.as_export_module(PROFILES["batch_of_grids"]).tables.cos.shape[0] == 2


@pytest.mark.parametrize("standardize", [True, False], ids=["standardize", "plain"])
def test_both_kinds_of_checkpoint_export(standardize):
    fp, q = converted("w8a16", standardize=standardize)
    given = inputs(PROFILES["batch_of_grids"].positions)
    program = pyquant.export(q, PROFILES["batch_of_grids"])
    assert [tensor.name for tensor in program.inputs] == ["pixel_values"]
    with torch.no_grad():
        out, expected = program.exported.module()(given["pixel_values"]), fp(**given).last_hidden_state
    worst = float((out - expected).abs().max() / expected.abs().max())
    assert worst < 0.05


def test_a_tree_in_its_float_phase_exports_as_float():
    fp, q = converted(use_clipped_linears=True, standardize=True)
    given = inputs(PROFILES["padded"].positions)
    with phase(q, Phase.FLOAT), torch.no_grad():
        program = pyquant.export(q, PROFILES["padded"], allow_float=True)
        out = program.exported.module()(given["pixel_values"])
        expected = fp(**given).last_hidden_state
    assert not any("fake_quantize" in str(node.target) for node in program.exported.graph.nodes)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_adapters_move_and_copy(tree):
    _, q = tree
    adapter = copy.deepcopy(q.as_export_module(PROFILES["padded"]))
    x = pixels(PROFILES["padded"].positions)
    with torch.no_grad():
        assert torch.equal(adapter(x), q.as_export_module(PROFILES["padded"])(x))
    assert adapter.train() is adapter
    assert not adapter.training
