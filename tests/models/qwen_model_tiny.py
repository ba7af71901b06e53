# SPDX-License-Identifier: Apache-2.0
"""Tiny whole Qwen3-VL models with nothing left at ones or zeros, prompts with images and videos, and their batches.

It owns building; the tower alone is qwen_vision_tiny.py, the text model alone qwen_text_tiny.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import qwen_text_tiny as text
import qwen_vision_tiny as vision
import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl as hf
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

import pyquant

torch.set_num_threads(1)

MERGE, PIXELS, VOCAB = vision.MERGE, vision.PIXELS, 67
IMAGE, VIDEO, START, END, EOS, PAD = 61, 62, 63, 64, 65, 66
Grid = tuple[int, int, int]
A, B, C, V = (1, 4, 4), (1, 2, 6), (1, 2, 2), (2, 4, 2)
Piece = int | Grid | tuple[str, Grid]


def config(*, vision_config: dict[str, Any] | None = None, tie: bool = True, **text_config: Any) -> Qwen3VLConfig:
    result = Qwen3VLConfig(
        text_config={**text.BASE, "vocab_size": VOCAB, "num_hidden_layers": 4, **text_config},
        vision_config={**vision.BASE, **(vision_config or {})},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tie,
    )
    result._attn_implementation = "eager"
    for part in (result.text_config, result.vision_config):
        part._attn_implementation = "eager"
        part.tie_word_embeddings = tie
    return result


def model(seed: int = 0, **overrides: Any) -> hf.Qwen3VLForConditionalGeneration:
    """Every parameter at random."""
    fp = hf.Qwen3VLForConditionalGeneration(config(**overrides))
    tied = fp.lm_head.weight is fp.model.language_model.embed_tokens.weight
    text.randomized(fp.model.language_model, seed)
    vision.randomized(fp.model.visual, seed + 1)
    with torch.no_grad():  # text rows are small beside visual ones, as in trained models
        fp.model.language_model.embed_tokens.weight.mul_(0.1)
    if not tied:
        vision.randomized(fp.lm_head, seed + 2)
    fp.generation_config.eos_token_id, fp.generation_config.pad_token_id = EOS, PAD
    return fp.eval()


def tokens(grid: Grid) -> int:
    return grid[0] * (grid[1] // MERGE) * (grid[2] // MERGE)


@dataclass(frozen=True)
class Prompt:
    """One row: an int is so many text tokens, a grid an image, ("video", grid) a video frame by frame, ("bare", grid)
    an image without the tokens that begin and end it."""

    pieces: tuple[Piece, ...]

    def ids(self, generator: torch.Generator) -> list[int]:
        out: list[int] = []
        for piece in self.pieces:
            if isinstance(piece, int):
                out += torch.randint(0, 60, (piece,), generator=generator).tolist()
            elif piece[0] == "video":
                grid = piece[1]
                for _ in range(grid[0]):  # a time stamp before each frame
                    out += [7, START, *[VIDEO] * tokens((1, *grid[1:])), END]
            elif piece[0] == "bare":
                out += [IMAGE] * tokens(piece[1])
            else:
                out += [START, *[IMAGE] * tokens(piece), END]
        return out

    def grids(self, kind: str) -> list[Grid]:
        wide = [piece for piece in self.pieces if not isinstance(piece, int)]
        if kind == "video":
            return [piece[1] for piece in wide if piece[0] == "video"]
        return [piece[1] if piece[0] == "bare" else piece for piece in wide if piece[0] != "video"]


def batch(*rows: Sequence[Piece], side: str = "none", seed: int = 0, mask: bool = True) -> dict[str, Any]:
    """What HF's processor makes of prompts; `side` of the padding."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [Prompt(tuple(row)) for row in rows]
    ids = [prompt.ids(generator) for prompt in prompts]
    length = max(map(len, ids))
    input_ids = torch.full((len(rows), length), PAD)
    attention = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(ids):
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        input_ids[number, where], attention[number, where] = torch.tensor(row), 1
    out: dict[str, Any] = {"input_ids": input_ids}
    if mask:
        out["attention_mask"] = attention
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        grids = [g for prompt in prompts for g in prompt.grids(kind)]
        if grids:
            patches = sum(t * h * w for t, h, w in grids)
            out[pixels] = torch.randn(patches, PIXELS, generator=generator)
            out[grid] = torch.tensor(grids)
    if "image_grid_thw" in out or "video_grid_thw" in out:
        types = torch.zeros_like(input_ids, dtype=torch.int32)
        out["mm_token_type_ids"] = types.masked_fill(input_ids == IMAGE, 1).masked_fill(input_ids == VIDEO, 2)
    return out


ROWS: dict[str, tuple[Sequence[Piece], ...]] = {
    "text": ((6,),),
    "image_first": ((A, 4),),
    "image_middle": ((3, B, 5),),
    "image_last": ((5, A),),
    "images_adjacent": ((2, A, B, C, 3),),
    "images_apart": ((2, B, 4, A, 3),),
    "video": ((2, ("video", V), 4),),
    "image_and_video": ((2, A, 1, ("video", V), 3, C),),
    "rows": ((3, A, 2), (4, ("video", V), 2, B), (5,), (2, C, C)),
}


def calibration() -> list[dict[str, Any]]:
    """Unpadded prompts of every kind, text alone among them."""
    return [batch(*rows, seed=number) for number, rows in enumerate(list(ROWS.values())[:-1])]


def quantized(policy: str | pyquant.Policy = "w8a8", **overrides: Any) -> tuple[Any, Any]:
    """(float model, converted tree)."""
    fp = model(**overrides)
    q = pyquant.prepare(fp, pyquant.Policy.preset(policy) if isinstance(policy, str) else policy)
    pyquant.calibrate(q, calibration(), progress=False)
    pyquant.convert(q)
    return fp, q
