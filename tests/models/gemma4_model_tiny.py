# SPDX-License-Identifier: Apache-2.0
"""Tiny whole Gemma4 models with everything at random, and prompts with images, videos and audio at any places."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig, Gemma4Config, Gemma4VisionConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel, Gemma4ForConditionalGeneration, Gemma4Model

from tests.models.gemma4_text_tiny import VOCAB, randomized, text_config

IMAGE, VIDEO, AUDIO, BOI, EOI = 30, 31, 32, 33, 34
PLAIN = 30  # ids below it are text
POOL, PATCH, MEL = 2, 2, 8  # the audio tower has as many mel bins as channels


def config(form: str = "e2b", *, audio: bool = False, standardize: bool = False, **text: Any) -> Any:
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pooling_kernel_size=POOL,
        patch_size=PATCH,
        position_embedding_size=16,
        use_clipped_linears=not standardize,
        standardize=standardize,
    )
    clips = Gemma4AudioConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        subsampling_conv_channels=[MEL, 4],  # HF takes the first for the number of mel bins too
        conv_kernel_size=3,
        attention_chunk_size=12,  # releases before 5.23 take these numbers for granted
        attention_context_left=13,
        attention_context_right=0,
        output_proj_dims=12,
    )
    made: Any = Gemma4Config(
        text_config=text_config(form, **text),
        vision_config=vision,
        audio_config=clips if audio else None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        boa_token_id=35,
        eoa_token_index=36,
    )
    made._attn_implementation = "eager"
    if audio and Gemma4AudioModel._supports_sdpa:  # in such releases (5.5.4) "eager" inverts the tower's masks
        made.audio_config._attn_implementation = "sdpa"
    return made


@torch.no_grad()
def filled(model: Any, seed: int) -> Any:
    """randomized, and bounds and standardization of the vision tower."""
    randomized(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        tail = name.rsplit(".", 1)[-1]
        if tail in ("input_min", "output_min"):
            buffer.fill_(-2.5)
        elif tail in ("input_max", "output_max"):
            buffer.fill_(2.0)
        elif tail == "std_bias":
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        elif tail == "std_scale":
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def conditional(form: str = "e2b", seed: int = 3, **changes: Any) -> Any:
    return filled(Gemma4ForConditionalGeneration(config(form, **changes)), seed)


def model(form: str = "e2b", seed: int = 3, **changes: Any) -> Any:
    return filled(Gemma4Model(config(form, **changes)), seed)


def pixels(grids: Sequence[tuple[int, int]], seed: int = 0, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Images of (height, width) patches -> pixel_values (N, P, 3 * PATCH**2), positions (N, P, 2); at least `pad`
    patches each, padded behind."""
    generator = torch.Generator().manual_seed(seed)
    length = max(pad, *(h * w for h, w in grids))
    values = torch.zeros(len(grids), length, 3 * PATCH**2)
    at = torch.full((len(grids), length, 2), -1, dtype=torch.int64)
    for i, (h, w) in enumerate(grids):
        values[i, : h * w] = torch.rand(h * w, 3 * PATCH**2, generator=generator)
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        at[i, : h * w] = torch.stack([x, y], -1).reshape(-1, 2)
    return values, at


def prompt(parts: Sequence[Any], seed: int = 0) -> list[int]:
    """Parts are a number of text tokens, or ("image" | "video" | "audio", number of soft tokens)."""
    generator = torch.Generator().manual_seed(seed)
    row: list[int] = []
    for part in parts:
        if isinstance(part, int):
            row += torch.randint(3, PLAIN, (part,), generator=generator).tolist()
        else:
            row += [{"image": IMAGE, "video": VIDEO, "audio": AUDIO}[part[0]]] * part[1]
    return row


def batch(rows: Sequence[Sequence[Any]], *, side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """input_ids, attention_mask and mm_token_type_ids of rows of parts, padded on one side."""
    made = [prompt(parts, seed + i) for i, parts in enumerate(rows)]
    length = max(map(len, made))
    input_ids = torch.zeros(len(made), length, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(made):
        place = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        input_ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    types = sum(((input_ids == token) * kind for kind, token in ((1, IMAGE), (2, VIDEO), (3, AUDIO))), input_ids * 0)
    return {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": types}


#: Whether this release takes the frames of all videos in one row; before, it was (videos, frames, ...).
FLAT_FRAMES = "num_frames_per_video" in inspect.signature(Gemma4ForConditionalGeneration.forward).parameters


def inputs(
    *rows: Sequence[Any], side: str = "left", extra: int = 0, seed: int = 0, patches: int = 0, mask: bool = True
) -> dict[str, Tensor]:
    """All arguments of a call. Parts of a row: a number of text tokens, ("image", h, w), ("video", frames, h, w), each
    in patches, ("audio", frames).

    extra: padding tokens beside the longest row. patches: of each image, at least, padded behind. mask: with an
    attention mask.
    """
    images, frames, counts, clips, soft = [], [], [], [], []
    for row in rows:
        made: list[Any] = []
        for part in row:
            if isinstance(part, int):
                made.append(part)
            elif part[0] == "audio":
                clips.append(part[1])
                made.append(("audio", -(-part[1] // 4)))
            else:
                number, grid = (1, part[1:]) if part[0] == "image" else (part[1], part[2:])
                (images if part[0] == "image" else frames).extend([grid] * number)
                if part[0] == "video":
                    counts.append(number)
                made.append((part[0], number * grid[0] * grid[1] // POOL**2))
        soft.append(made)
    given = batch([*soft], side=side, seed=seed)
    if extra:
        pad = (extra, 0) if side == "left" else (0, extra)
        given = {name: torch.nn.functional.pad(value, pad) for name, value in given.items()}
    if not mask:
        del given["attention_mask"]
    if images:
        given["pixel_values"], given["image_position_ids"] = pixels(images, seed, patches)
    if frames:
        values, at = pixels(frames, seed + 1, patches)
        if FLAT_FRAMES:
            given["num_frames_per_video"] = torch.tensor(counts)
        else:
            values, at = (t.reshape(len(counts), -1, *t.shape[1:]) for t in (values, at))
        given["pixel_values_videos"], given["video_position_ids"] = values, at
    if clips:
        generator = torch.Generator().manual_seed(seed)
        given["input_features"] = torch.randn(len(clips), max(clips), MEL, generator=generator)
        given["input_features_mask"] = torch.arange(max(clips))[None] < torch.tensor(clips)[:, None]
    return given


__all__ = ["AUDIO", "IMAGE", "VIDEO", "VOCAB", "batch", "conditional", "config", "inputs", "model", "pixels", "prompt"]
