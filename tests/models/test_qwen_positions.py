# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of prompts with images and videos against transformers' own get_rope_index."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.positions import (
    IMAGE,
    TEXT,
    VIDEO,
    continued,
    rope_index,
    token_types,
    visual_tokens,
)

MERGE = 2
IMAGE_ID, VIDEO_ID = 91, 92


def hf_rope_index(types: Tensor, images: list[Any], videos: list[Any], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    me = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)))
    me.get_vision_position_ids = partial(Qwen3VLModel.get_vision_position_ids, me)
    return Qwen3VLModel.get_rope_index(
        me,
        torch.zeros_like(types),
        mm_token_type_ids=types,
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        attention_mask=mask,
    )


def run(kind: int, *grids: tuple[int, int, int]) -> list[int]:
    """The tokens of images or frames, with a start and an end token around each."""
    out: list[int] = []
    for grid in grids:
        out += [TEXT, *[kind] * visual_tokens(grid, MERGE), TEXT]
    return out


def batch(*rows: list[int], side: str = "right") -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    types, mask = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        types[i, where], mask[i, where] = torch.tensor(row), 1
    return types, mask


A, B, C, V = (1, 4, 6), (1, 8, 2), (1, 2, 2), (3, 4, 4)
FRAMES = [(1, 4, 4)] * 3
T = [TEXT]
CASES: dict[str, tuple[list[list[int]], list[Any], list[Any]]] = {
    "text": ([T * 7], [], []),
    "image_first": ([run(IMAGE, A) + T * 3], [A], []),
    "image_middle": ([T * 4 + run(IMAGE, A) + T * 3], [A], []),
    "image_last": ([T * 5 + run(IMAGE, B)], [B], []),
    "image_without_marks": ([T * 2 + [IMAGE] * 6 + T], [A], []),
    "images_next_to_each_other": ([T + run(IMAGE, A, B, C) + T * 2], [A, B, C], []),
    "images_apart": ([T + run(IMAGE, A) + T * 5 + run(IMAGE, B) + T], [A, B], []),
    "video": ([T * 2 + run(VIDEO, *FRAMES) + T * 4], [], [V]),
    "image_and_video": ([run(IMAGE, B) + T * 2 + run(VIDEO, *FRAMES) + run(IMAGE, A) + T], [B, A], [V]),
    "two_videos": ([run(VIDEO, *FRAMES) + T * 3 + run(VIDEO, C, C) + T], [], [V, (2, 2, 2)]),
    "rows": ([T * 3 + run(IMAGE, A) + T * 2, T * 9, run(IMAGE, C, B), run(VIDEO, *FRAMES)], [A, C, B], [V]),
}


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("case", CASES)
def test_as_transformers(case: str, side: str) -> None:
    rows, images, videos = CASES[case]
    types, mask = batch(*rows, *([T * 2] if side != "none" else []), side=side)  # without a mask, more text
    given = None if side == "none" else mask
    positions, deltas = rope_index(types, images, videos, given, merge=MERGE)
    expected, expected_deltas = hf_rope_index(types, images, videos, given)
    assert torch.equal(positions, expected)
    assert torch.equal(deltas, expected_deltas)


@pytest.mark.parametrize("mask_type", [torch.bool, torch.int32, torch.float32])
def test_mask_types(mask_type: torch.dtype) -> None:
    types, mask = batch(run(IMAGE, A) + T, T * 2, side="left")
    positions, deltas = rope_index(types, [A], [], mask.to(mask_type), merge=MERGE)
    expected, expected_deltas = hf_rope_index(types, [A], [], mask)
    assert torch.equal(positions, expected)
    assert torch.equal(deltas, expected_deltas)


def test_images_without_a_token_between_them() -> None:
    """transformers fails here; each image starts where the one before it ended, as after any other token."""
    positions, _ = rope_index(torch.tensor([T + [IMAGE] * 7 + T]), [A, C], [], merge=MERGE)
    first, _ = rope_index(torch.tensor([T + [IMAGE] * 6]), [A], [], merge=MERGE)
    assert torch.equal(positions[..., :7], first)
    assert positions[:, 0, 7:].tolist() == [[4, 5]] * 3


def test_a_prompt_that_continues_another_stands_where_the_whole_would() -> None:
    head, tail = T * 2 + run(IMAGE, A) + T, T * 2 + run(IMAGE, B) + T * 3
    whole, whole_delta = rope_index(torch.tensor([head + tail]), [A, B], [], merge=MERGE)
    before, delta = rope_index(torch.tensor([head]), [A], [], merge=MERGE)
    start = len(head) + delta
    after, more = rope_index(torch.tensor([tail]), [B], [], merge=MERGE, start=start)
    assert torch.equal(torch.cat([before, after], dim=-1), whole)
    assert torch.equal(delta + more, whole_delta)
    text = continued(4, len(head) + len(tail), whole_delta, None, 1)
    longer, _ = rope_index(torch.tensor([head + tail + T * 4]), [A, B], [], merge=MERGE)
    assert torch.equal(text, longer[..., -4:])


@pytest.mark.parametrize("side", ["right", "left"])
def test_decoding_after_padding(side: str) -> None:
    rows = [run(IMAGE, A) + T * 2, T * 4]
    types, mask = batch(*rows, side=side)
    _, deltas = rope_index(types, [A], [], mask, merge=MERGE)
    longer = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], dim=1)
    got = continued(3, types.shape[1], deltas, longer, 2)
    for i, row in enumerate(rows):
        alone, _ = rope_index(torch.tensor([row + T * 3]), [A] if i == 0 else [], [], merge=MERGE)
        assert torch.equal(got[:, i], alone[:, 0, -3:])


def test_token_types() -> None:
    ids = torch.tensor([[5, IMAGE_ID, VIDEO_ID, 0]], dtype=torch.int32)
    assert token_types(ids, IMAGE_ID, VIDEO_ID).tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("types", "images", "message"),
    [
        ([[0, 1, 1, 0]], [A], "row 0 has 2 image tokens at place 1.*makes 6"),
        ([[0, 0], [1, 0]], [], "row 1 has 1 image tokens at place 0.*no grid is left"),
        ([[0, 0]], [C], "1 more image grid"),
        ([[1, 1, 0]], [C], "row 0 has 1 image tokens"),
    ],
)
def test_grids_that_do_not_fit(types: list[list[int]], images: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rope_index(torch.tensor(types), images, [], merge=MERGE)
