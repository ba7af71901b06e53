# SPDX-License-Identifier: Apache-2.0
"""What a grid means: order of patches, positions, interpolated embeddings, rotary tables, segments.

Judged by loops, by torch's own interpolation, and by transformers' functions where this release has them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from qwen_vision_tiny import Grid, cu_seqlens, hf, normal, places, rotary, vision
from torch import Tensor

import pyquant
from pyquant.errors import InputError
from pyquant.models.qwen3_vl import grids as ours
from pyquant.models.qwen3_vl.grids import Segments

MANY: dict[str, tuple[int, tuple[Grid, ...]]] = {
    "small": (2, tuple((1, h, w) for h in (2, 4, 6, 8) for w in (2, 4, 10))),
    "as_the_table": (2, ((1, 6, 6), (2, 6, 8))),
    "large": (2, ((1, 48, 2), (1, 2, 64), (2, 30, 22), (1, 20, 20))),
    "videos": (2, ((3, 4, 6), (1, 2, 2), (5, 2, 4))),
    "merge_1": (1, tuple((1, h, w) for h in (1, 2, 3, 5, 7) for w in (1, 3, 4))),
    "merge_3": (3, ((1, 3, 6), (2, 9, 3), (1, 12, 12))),
}
every_grid = pytest.mark.parametrize(("merge", "grids"), MANY.values(), ids=MANY)


def by_torch(table: Tensor, grids: Sequence[Grid], merge: int) -> Tensor:
    """torch's own bilinear resampling in float64, put in order by the loops of `places`."""
    side = int(table.shape[0] ** 0.5)
    square = table.double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    parts = []
    for t, h, w in grids:
        frame = torch.nn.functional.interpolate(square, size=(h, w), mode="bilinear", align_corners=True)[0]
        place = places([(1, h, w)], merge)
        parts += [frame[:, place[:, 0], place[:, 1]].T] * t
    return torch.cat(parts)


def theirs(name: str) -> Any:
    """A function of transformers.vision_utils, which releases before 5.8 lack."""
    module = pytest.importorskip("transformers.vision_utils", reason="this transformers computes it in the model")
    return getattr(importlib.import_module(module.__name__), name, None)


@every_grid
@pytest.mark.parametrize("side", [1, 2, 3, 7, 48])
def test_position_embeddings_are_the_table_resampled(merge: int, grids: tuple[Grid, ...], side: int) -> None:
    table = normal(side * side, 5, side)
    found, expected = ours.interpolated(table, grids, merge), by_torch(table, grids, merge)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    assert float(found.max()) <= float(table.max()) + 1e-6
    assert float(found.min()) >= float(table.min()) - 1e-6


@every_grid
def test_position_embeddings_are_those_of_transformers(merge: int, grids: tuple[Grid, ...]) -> None:
    fp = vision(num_position_embeddings=49, spatial_merge_size=merge)
    thw, table = torch.tensor(grids), fp.pos_embed.weight
    if hasattr(fp, "fast_pos_embed_interpolate") and not hasattr(hf, "get_vision_bilinear_indices_and_weights"):
        expected = fp.fast_pos_embed_interpolate(thw)
    elif newest := theirs("get_vision_interpolation_indices_and_weights"):
        indices, weights = newest(thw, 7, align_corners=True, spatial_merge_size=merge)
        expected = (table[indices] * weights[:, :, None]).sum(1)
    else:
        indices, weights = theirs("get_vision_bilinear_indices_and_weights")(thw, 7, merge)
        expected = (table[indices] * weights[:, :, None]).sum(0)
    torch.testing.assert_close(ours.interpolated(table, grids, merge), expected, rtol=0, atol=5e-6)


def test_a_table_that_is_no_square_uses_the_square_in_it() -> None:
    table = normal(11, 3, 0)
    assert torch.equal(ours.interpolated(table, [(1, 4, 4)], 2), ours.interpolated(table[:9], [(1, 4, 4)], 2))


@every_grid
def test_patches_come_in_merge_order(merge: int, grids: tuple[Grid, ...]) -> None:
    found = ours.position_ids(grids, merge)
    assert torch.equal(found, places(grids, merge))
    if (function := getattr(importlib.import_module(hf.__name__), "get_vision_position_ids", None)) is not None:
        assert torch.equal(found, function(torch.tensor(grids), merge))


@pytest.mark.parametrize("name", ["small", "videos", "large"])
def test_rotary_tables_are_the_formula(name: str) -> None:
    merge, grids = MANY[name]
    q = pyquant.prepare(vision(), pyquant.Policy.preset("w8a8"))
    tables = q.rotary_pos_emb.tables(torch.empty(0), ours.position_ids(grids, merge))
    cos, sin = rotary(8, grids)
    sign = torch.tensor([-1.0] * 4 + [1.0] * 4)
    torch.testing.assert_close(tables.cos[0, :, 0], cos, rtol=0, atol=5e-6)
    torch.testing.assert_close(tables.signed_sin[0, :, 0], sin * sign, rtol=0, atol=5e-6)


def test_the_rotary_wrapper_is_transformers_module() -> None:
    """Whatever this release's takes: (x, position_ids), (position_ids) or (seqlen)."""
    fp = vision().rotary_pos_emb
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    ids = places([(1, 4, 6)])
    given = {"x": (torch.empty(0), ids), "position_ids": (ids,), "seqlen": (6,)}[q.takes[0]]
    expected, found = fp(*given), q(*given)
    assert list(q.all_sites()) == []
    assert q.hf is not fp
    for a, b in zip(*((out,) if isinstance(out, Tensor) else out for out in (expected, found)), strict=True):
        assert torch.equal(a, b)


@every_grid
def test_segments_are_frames(merge: int, grids: tuple[Grid, ...]) -> None:
    rows = sum(t * h * w for t, h, w in grids)
    assert Segments.of(cu_seqlens(grids), rows) == Segments.of_grids(grids)
    folds = Segments.of_grids(grids).folds(heads=4)
    assert [fold.length for fold in folds for _ in range(fold.count)] == list(Segments.of_grids(grids).lengths)
    ends = [(fold.start, fold.stop) for fold in folds]
    assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
    assert ends[-1][1] == rows


def test_equal_neighbours_are_one_fold() -> None:
    folds = Segments((16, 16, 8, 16, 16, 16)).folds(heads=4)
    assert [(fold.start, fold.count, fold.length) for fold in folds] == [(0, 2, 16), (32, 1, 8), (40, 3, 16)]


def test_a_long_video_is_folded_in_parts() -> None:
    """32 frames of 1024 patches and 16 heads would hold 2 GiB of logits at once; no part holds more than 256 MiB."""
    folds = Segments((1024,) * 32).folds(heads=16)
    assert sum(fold.count for fold in folds) == 32
    assert max(4 * 16 * fold.count * fold.length**2 for fold in folds) == 2**28
    assert len(Segments((10**5,) * 2).folds(heads=16)) == 2  # one at a time, however large


def test_empty_segments_are_left_out() -> None:
    assert Segments.of(torch.tensor([0, 0, 4, 4, 6]), 6) == Segments((4, 2))


BAD_MARKS = {
    "too_few_rows": [0, 4],
    "too_many_rows": [0, 4, 12],
    "not_from_zero": [2, 6],
    "falling": [0, 6, 4, 6],
    "nothing": [],
    "one_mark": [0],
}


@pytest.mark.parametrize("marks", BAD_MARKS.values(), ids=BAD_MARKS)
def test_marks_that_are_no_segments_are_refused(marks: list[int]) -> None:
    with pytest.raises(InputError, match=r"cu_seqlens must rise from 0 to the 6 rows .* got \["):
        Segments.of(torch.tensor(marks, dtype=torch.int32), 6)


BAD_GRIDS: dict[str, tuple[Any, str]] = {
    "zero": ([(1, 0, 4)], r"row 0 of grid_thw is \(1, 0, 4\), but frames, height and width are at least 1"),
    "no_frames": ([(1, 4, 4), (0, 4, 4)], r"row 1 of grid_thw is \(0, 4, 4\)"),
    "negative": ([(1, -4, -4)], "at least 1"),
    "odd_height": ([(1, 5, 4)], "multiples of spatial_merge_size 2; resize the image"),
    "odd_width": ([(1, 4, 4), (1, 4, 3)], r"row 1 of grid_thw is \(1, 4, 3\)"),
    "empty": (torch.zeros(0, 3, dtype=torch.int64), "grid_thw has no rows"),
    "pairs": ([(4, 4)], "grid_thw is .* integers: frames, height and width"),
    "one_triple": (torch.tensor([1, 4, 4]), r"got torch.int64 of shape \(3,\)"),
    "floats": (torch.tensor([[1.0, 4.0, 4.0]]), r"got torch.float32 of shape \(1, 3\)"),
    "truth": (torch.tensor([[True, True, True]]), "a truth value is no number of patches"),
    "none": (None, "got None"),
    "rows": ([(1, 4, 4), (1, 2, 4)], r"pixel_values have 16 rows, but grid_thw .* has 24 patches"),
}


@pytest.mark.parametrize(("grid", "message"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_grids_that_are_none_are_refused(grid: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours.grids_of(grid, 2, 16)


def test_grids_may_be_numbers_of_any_integer_type() -> None:
    expected = ((1, 4, 4), (2, 2, 4))
    for dtype in (torch.int32, torch.int64, torch.uint8):
        assert ours.grids_of(torch.tensor(expected, dtype=dtype), 2) == expected
    assert ours.grids_of([[1, 4, 4], [2, 2, 4]], 2, 32) == expected
