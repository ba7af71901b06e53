# SPDX-License-Identifier: Apache-2.0
"""VisionProfile: what it stores, and every way in which it can contradict itself or a model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gemma4_tiny import positions, vision

import pyquant
from pyquant.errors import ProfileError
from pyquant.exporter.profile import TensorSpec
from pyquant.models.gemma4 import VisionProfile


def test_a_grid_is_row_by_row_with_x_first():
    profile = VisionProfile(grid=(2, 3))
    assert profile.pixel_position_ids == (((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)),)
    assert profile.shape == (1, 6)
    assert torch.equal(profile.positions, positions((2, 3)))


SAME = {
    "one_grid_repeated": (VisionProfile(grid=(2, 4), batch_size=2), positions((2, 4), (2, 4))),
    "two_grids_pad_to_the_larger": (VisionProfile(grid=((2, 4), (4, 4))), positions((2, 4), (4, 4))),
    "num_patches_pads": (VisionProfile(grid=(2, 2), num_patches=6), positions((2, 2), patches=6)),
    "lists": (VisionProfile(grid=[[2, 4], [4, 4]]), positions((2, 4), (4, 4))),
    "tensor": (VisionProfile(pixel_position_ids=positions((2, 4), (4, 4))), positions((2, 4), (4, 4))),
    "nested": (VisionProfile(pixel_position_ids=positions((2, 4)).tolist()), positions((2, 4))),
    "ids_repeated": (VisionProfile(pixel_position_ids=positions((2, 2)), batch_size=3), positions(*[(2, 2)] * 3)),
    "ids_padded": (VisionProfile(pixel_position_ids=positions((2, 2)), num_patches=9), positions((2, 2), patches=9)),
}


@pytest.mark.parametrize(("profile", "ids"), SAME.values(), ids=SAME)
def test_every_way_to_say_the_same(profile, ids):
    assert torch.equal(profile.positions, ids)
    assert (profile.batch_size, profile.num_patches) == tuple(ids.shape[:2])


def test_profiles_are_frozen_hashable_values():
    a, b = VisionProfile(grid=(2, 4)), VisionProfile(grid=[2, 4])
    assert a == b
    assert hash(a) == hash(b)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.batch_size = 2
    changed = positions((2, 2))
    c = VisionProfile(pixel_position_ids=changed)
    changed.fill_(7)
    assert torch.equal(c.positions, positions((2, 2)))


BAD = {
    "nothing": ({}, r"either grid=\(height, width\) or pixel_position_ids"),
    "both": ({"grid": (2, 2), "pixel_position_ids": positions((2, 2))}, "and not both"),
    "grid_of_one": ({"grid": (4,)}, r"grid is \(height, width\) in patches"),
    "grid_of_words": ({"grid": "4x4"}, r"grid is \(height, width\) in patches"),
    "grid_of_zero": ({"grid": (0, 4)}, "at least one patch along each side"),
    "no_grids": ({"grid": ()}, "at least one patch along each side"),
    "batch_of_zero": ({"grid": (2, 2), "batch_size": 0}, "batch_size is a positive integer or None, got 0"),
    "batch_of_true": ({"grid": (2, 2), "batch_size": True}, "batch_size is a positive integer or None, got True"),
    "batch_contradicts": ({"grid": ((2, 2), (2, 4)), "batch_size": 3}, "has 2 images, but batch_size=3"),
    "too_few_patches": ({"grid": (4, 4), "num_patches": 12}, "num_patches=12 is less than the 16 patches"),
    "float_ids": ({"pixel_position_ids": positions((2, 2)).float()}, "must be integers of shape .* got torch.float32"),
    "flat_ids": ({"pixel_position_ids": positions((2, 2))[0]}, r"of shape \(4, 2\)"),
    "ragged_ids": ({"pixel_position_ids": [[(0, 0)], [(0, 0), (1, 0)]]}, r"must be \(batch, patches, 2\) integers"),
    "padding_inside": (
        {"pixel_position_ids": [[(0, 0), (-1, -1), (1, 0)]]},
        r"patch 1 of image 0 is padding \(-1, -1\), but patches follow it.*move it to the end",
    ),
    "half_padding": ({"pixel_position_ids": [[(0, 0), (-1, 3)]]}, r"patch 1 of image 0 is at \(-1, 3\)"),
    "all_padding": ({"pixel_position_ids": [[(0, 0)], [(-1, -1)]]}, "image 1 is all padding"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_no_model_could_accept_is_refused(arguments, message):
    with pytest.raises(ProfileError, match=message):
        VisionProfile(**arguments)


@pytest.fixture(scope="module")
def q():
    fp = vision(standardize=True)
    tree = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    ids = positions((4, 4))
    pyquant.calibrate(tree, [{"pixel_values": torch.rand(1, 16, 12), "pixel_position_ids": ids}], progress=False)
    pyquant.convert(tree)
    return tree


CONTRADICTIONS = {
    "patch_count": (VisionProfile(grid=(3, 2)), r"6 patches do not divide into pools of 2 x 2; set num_patches to 8"),
    "odd_width": (VisionProfile(grid=(4, 5), num_patches=20), "image 0 is 4 patches high and 5 wide"),
    "odd_height_padded": (VisionProfile(grid=(5, 2), num_patches=12), "image 0 is 5 patches high and 2 wide"),
    "beyond_the_table": (VisionProfile(grid=(2, 14)), r"patch 12 of image 0 is at .*\(12, 0\).* ends at 11"),
    "holes": (
        VisionProfile(pixel_position_ids=[[(0, 0), (1, 0), (0, 1), (7, 7)]]),
        r"reaches to \(x, y\) = \(7, 7\), 16 pools, but 4 patches give only 1",
    ),
    "kernel": (VisionProfile(grid=(4, 4), pooling_kernel_size=4), "has pooling_kernel_size=4, but the model's is 2"),
}


@pytest.mark.parametrize(("profile", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_the_model_is_refused_by_export(q, profile, message):
    with pytest.raises(ProfileError, match=message):
        pyquant.export(q, profile)


def test_parts_check_what_concerns_them(q):
    with pytest.raises(ProfileError, match="a pooler has no kernel size"):
        q.pooler.as_export_module(VisionProfile(grid=(4, 4)))
    with pytest.raises(ProfileError, match="pooling_kernel_size 1 does not pool"):
        q.pooler.as_export_module(VisionProfile(grid=(4, 4), pooling_kernel_size=1))
    with pytest.raises(ProfileError, match="ends at 11"):
        q.patch_embedder.as_export_module(VisionProfile(grid=(1, 13)))
    q.encoder.as_export_module(VisionProfile(grid=(1, 13)))  # has neither table nor pools


def test_another_kind_of_profile_is_refused(q):
    other = pyquant.ExportProfile({"pixel_values": TensorSpec((1, 16, 12))}, ("y",))
    layer = q.encoder.layers[0]
    for part in (q, q.encoder, layer, layer.self_attn, q.patch_embedder, q.pooler):
        with pytest.raises(ProfileError, match=r"gemma4\.VisionProfile\(grid=\(height, width\)\), got ExportProfile"):
            part.as_export_module(other)


def test_export_before_convert_is_refused():
    fresh = pyquant.prepare(vision(), pyquant.Policy.preset("w8a8"))
    for part in (
        fresh,
        fresh.encoder,
        fresh.encoder.layers[0],
        fresh.encoder.layers[0].self_attn,
        fresh.patch_embedder,
    ):
        with pytest.raises(pyquant.PyquantError, match=r"export before the tree is ready.*run pyquant\.calibrate"):
            part.as_export_module(VisionProfile(grid=(4, 4)))
