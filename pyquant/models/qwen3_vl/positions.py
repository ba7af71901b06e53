# SPDX-License-Identifier: Apache-2.0
"""The rotary position of each token of a prompt with images and videos: time, height and width.

It owns the arithmetic, as pure functions of token types and grids; a model, a profile and the host side of a bundle all
call them. What the positions rotate is text_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.grids import Grid

TEXT, IMAGE, VIDEO = 0, 1, 2
_WORD = {IMAGE: "image", VIDEO: "video"}


def token_types(input_ids: Tensor, image_token_id: int, video_token_id: int) -> Tensor:
    """input_ids (B, S) -> int64 (B, S): 0 for text, 1 for an image's placeholder, 2 for a video's."""
    types = torch.zeros_like(input_ids, dtype=torch.int64)
    return types.masked_fill(input_ids == image_token_id, IMAGE).masked_fill(input_ids == video_token_id, VIDEO)


def frames_of(grids: Sequence[Grid]) -> tuple[Grid, ...]:
    """Videos as their single frames: a prompt has a time stamp, and so a run of tokens of its own, for each."""
    return tuple((1, h, w) for t, h, w in grids for _ in range(t))


def visual_tokens(grid: Grid, merge: int) -> int:
    """How many tokens an image or video of `grid` patches becomes, when `merge` x `merge` patches are one."""
    t, h, w = grid
    return t * (h // merge) * (w // merge)


def rope_index(
    types: Tensor,
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    attention_mask: Tensor | None = None,
    *,
    merge: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions (3, B, S) and rope_deltas (B, 1), int64, of `types` (B, S) as token_types gives them.

    A text token is one step on all three axes. An image starts where the text before it ended; its tokens differ in
    height and width, and the text after it starts past its longer side. Images use `image_grids` in order,
    row by row, videos frame by frame from `video_grids`. Padding (attention_mask (B, S) of 0) is position 0 and counts
    for nothing. `start` (B,) is the position of each row's first token, for a prompt that continues another; a row's
    delta is what comes after its last position, less its own length and `start`.

    Raises InputError when runs of placeholder tokens and grids do not fit each other, naming row and place.
    """
    if types.dim() != 2 or (attention_mask is not None and attention_mask.shape != types.shape):
        seen = None if attention_mask is None else tuple(attention_mask.shape)
        raise InputError(
            f"token types are (batch, seq) and a mask has their shape, got {tuple(types.shape)} and {seen}"
        )
    supply = {IMAGE: list(image_grids)[::-1], VIDEO: list(frames_of(video_grids))[::-1]}
    positions = torch.zeros(3, *types.shape, dtype=torch.int64, device="cpu")
    deltas = torch.zeros(types.shape[0], 1, dtype=torch.int64, device="cpu")
    valid = torch.ones_like(types, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    keep = valid.cpu()
    first = [0] * len(types) if start is None else start.reshape(-1).tolist()
    for row, ids in enumerate(types.tolist()):
        kept = [kind for kind, real in zip(ids, keep[row].tolist(), strict=True) if real]
        if not kept:
            continue  # nothing but padding
        found = _row(kept, supply, merge, row) + first[row]
        positions[:, row, keep[row]] = found
        deltas[row] = int(found.max()) + 1 - len(kept) - first[row]
    for kind, left in supply.items():
        if left:
            raise InputError(
                f"{len(left)} more {_WORD[kind]} grid(s) than the prompt has runs of {_WORD[kind]} tokens, the next is "
                f"{left[-1]}; give each {_WORD[kind]} its placeholder tokens, or leave its grid out"
            )
    return positions.to(types.device), deltas.to(types.device)


def _row(types: list[int], supply: dict[int, list[Grid]], merge: int, row: int) -> Tensor:
    """(3, length) of one row without padding; takes its grids off the ends of `supply`."""
    parts: list[Tensor] = []
    at = place = 0
    for kind, run in groupby(types):
        length = len(list(run))
        if kind == TEXT:
            parts.append((torch.arange(length, dtype=torch.int64, device="cpu") + at).expand(3, -1))
            at += length
        left = 0 if kind == TEXT else length
        while left:  # images without a text token between them make one run
            if not supply[kind]:
                raise InputError(
                    f"row {row} has {left} {_WORD[kind]} tokens at place {place} (padding not counted) and no grid is "
                    f"left for them; pass one row of {_WORD[kind]}_grid_thw per {_WORD[kind]}"
                )
            grid = supply[kind].pop()
            tokens = visual_tokens(grid, merge)
            if not 0 < tokens <= left:
                raise InputError(
                    f"row {row} has {left} {_WORD[kind]} tokens at place {place} (padding not counted), but the grid "
                    f"{grid} with patches merged {merge} x {merge} makes {tokens}; the prompt and "
                    f"{_WORD[kind]}_grid_thw are not of the same {_WORD[kind]}s"
                )
            parts.append(_block(grid, merge) + at)
            at += max(grid[1], grid[2]) // merge
            left -= tokens
        place += length
    return torch.cat(parts, dim=1)


def _block(grid: Grid, merge: int) -> Tensor:
    t, h, w = grid
    axes = torch.meshgrid(
        torch.arange(t, dtype=torch.int64, device="cpu"),
        torch.arange(h // merge, dtype=torch.int64, device="cpu"),
        torch.arange(w // merge, dtype=torch.int64, device="cpu"),
        indexing="ij",
    )
    return torch.stack(axes).reshape(3, -1)


def continued(length: int, past: int, rope_deltas: Tensor | None, attention_mask: Tensor | None, batch: int) -> Tensor:
    """Positions (3, B, length) of text that follows `past` cached tokens: one step a token, moved by `rope_deltas`.

    attention_mask (B, past + length) marks padding, which does not advance the position.
    """
    if attention_mask is None:
        steps = torch.arange(past, past + length, dtype=torch.int64, device="cpu").expand(batch, -1)
    else:
        steps = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)[:, -length:]
    if rope_deltas is not None:
        deltas = rope_deltas.reshape(-1, 1).to(steps.device)
        if batch % len(deltas):
            raise InputError(f"rope_deltas are of {len(deltas)} rows and the batch has {batch}; pass position_ids")
        steps = steps + deltas.repeat_interleave(batch // len(deltas), dim=0)
    return steps.expand(3, -1, -1)
