# SPDX-License-Identifier: Apache-2.0
"""Token ids and images as the inputs of a Qwen3-VL, for calibration and for a session, where no processor is at hand.

It owns cutting into patches, placeholders and padding. Resizing an image to whole tokens, and text to ids, is the HF
processor's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyquant.errors import InputError
from pyquant.models.qwen3_vl.grids import Grid, in_merge_order
from pyquant.models.qwen3_vl.positions import token_types, visual_tokens

CHANNELS = 3


def patchify(
    image: Any,
    *,
    patch_size: int = 16,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
    mean: float = 0.5,
    std: float = 0.5,
) -> tuple[Tensor, Grid]:
    """One image -> patches (N, 3 * temporal_patch_size * patch_size**2), float32, and its grid (1, height, width).

    `image` is (H, W, 3) or (3, H, W); uint8 from 0 to 255, or floating point from 0 to 1; normalized by (x - mean) /
    std. Patches are in the order in which `merge_size` x `merge_size` of them become a token, each flattened as
    (channel, time, y, x) with the image at every time. Raises InputError for another form, or sides that are not whole
    tokens.
    """
    pixels = torch.as_tensor(image, device="cpu")
    if pixels.dim() == 3 and pixels.shape[0] != CHANNELS and pixels.shape[-1] == CHANNELS:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dim() != 3 or pixels.shape[0] != CHANNELS:
        raise InputError(
            f"an image is (height, width, {CHANNELS}) or ({CHANNELS}, height, width), got {tuple(pixels.shape)}"
        )
    unit = patch_size * merge_size
    if pixels.shape[1] % unit or pixels.shape[2] % unit or not pixels.numel():
        raise InputError(
            f"the image is {pixels.shape[1]} x {pixels.shape[2]} pixels, but its sides must be multiples of {unit} "
            f"(patch_size {patch_size} * merge_size {merge_size}); resize it with transformers' image processor"
        )
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    elif not pixels.is_floating_point():
        raise InputError(f"an image is uint8 from 0 to 255 or floating point from 0 to 1, got {pixels.dtype}")
    rows, columns = pixels.shape[1] // patch_size, pixels.shape[2] // patch_size
    normal = (pixels.float() - mean) / std
    patches = normal.reshape(CHANNELS, rows, patch_size, columns, patch_size).permute(1, 3, 0, 2, 4)
    ordered = in_merge_order(patches, merge_size).unsqueeze(2)
    every = ordered.expand(-1, -1, temporal_patch_size, -1, -1)
    return every.reshape(rows * columns, -1), (1, rows, columns)


def prompt_batch(
    rows: Sequence[Sequence[Any]],
    config: Any,
    *,
    pad_token_id: int = 0,
    side: Literal["left", "right"] = "left",
    mean: float = 0.5,
    std: float = 0.5,
) -> dict[str, Tensor]:
    """Prompts as the keyword arguments of a Qwen3-VL: each row is token ids (int) and images, in their order.

    `config` is the model's (Qwen3VLConfig): its token ids, patch and merge sizes. An image becomes its start token,
    placeholders and end token. Returns input_ids, attention_mask, mm_token_type_ids (B, S) int64, padded on `side`;
    and with images pixel_values (patches, pixels) and image_grid_thw (images, 3). Raises InputError as patchify, and
    for no rows or an empty one.
    """
    vision = config.vision_config
    sizes = {name: int(getattr(vision, name)) for name in ("patch_size", "temporal_patch_size")}
    merge = int(vision.spatial_merge_size)
    ids: list[list[int]] = []
    pixels: list[Tensor] = []
    grids: list[Grid] = []
    for row in rows:
        line: list[int] = []
        for piece in row:
            if isinstance(piece, int):
                line.append(piece)
                continue
            patches, grid = patchify(piece, **sizes, merge_size=merge, mean=mean, std=std)
            tokens = [config.image_token_id] * visual_tokens(grid, merge)
            line += [config.vision_start_token_id, *tokens, config.vision_end_token_id]
            pixels.append(patches)
            grids.append(grid)
        ids.append(line)
    if not ids or not all(ids):
        raise InputError("a batch of prompts has at least one row, and a row at least one token or image")
    length = max(map(len, ids))
    input_ids = torch.full((len(ids), length), pad_token_id, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(input_ids)
    for number, line in enumerate(ids):
        where = slice(length - len(line), None) if side == "left" else slice(len(line))
        input_ids[number, where], mask[number, where] = torch.tensor(line, dtype=torch.int64, device="cpu"), 1
    types = token_types(input_ids, config.image_token_id, config.video_token_id)
    out = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": types}
    if pixels:
        out |= {
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.tensor(grids, dtype=torch.int64, device="cpu"),
        }
    return out
