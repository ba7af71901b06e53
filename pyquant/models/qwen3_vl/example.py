# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen3-VL with random weights, and inputs of images and token ids for any Qwen3-VL.

It owns cutting images into patches as the vision tower reads them, and the places of image tokens in a prompt. A
checkpoint with a processor of its own does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import byte_ids, made_up_image, randomize_, resized

CELLS = 2  # merged patches along each side of an image
# The tiny model reads bytes: one id each, then the special ones.
IMAGE, VIDEO, START, END, EOS, PAD, VOCAB = 256, 257, 258, 259, 260, 261, 264


def tiny_model() -> nn.Module:
    """Three layers each, 32 wide, two taps; its tokens are bytes."""
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

    config: Any = Qwen3VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
    )
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
        part.tie_word_embeddings = True
    model = randomize_(Qwen3VLForConditionalGeneration(config))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD  # type: ignore[union-attr]
    return model.eval()


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Images come before the prompt, unless the ids have image tokens already. Raises InputError for ids beyond the
    vocabulary, or another number of image tokens than the images make."""
    config: Any = model.config
    vision = getattr(config, "vision_config", config)
    if not hasattr(vision, "spatial_merge_size"):
        raise InputError(f"pyquant makes inputs for a whole Qwen3-VL or its vision model, not a {type(model).__name__}")
    if not images and ids is None:
        images = [made_up_image()]
    merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
    side = CELLS * merge
    pixels = [_patches(resized(image, side * patch, side * patch), vision) for image in images]
    grid = torch.tensor([[1, side, side]] * len(images), dtype=torch.int64, device="cpu")
    if vision is config:
        if ids is not None or not images:
            raise InputError(f"a {type(model).__name__} takes images alone; leave the prompt and ids out")
        return {"hidden_states": torch.cat(pixels), "grid_thw": grid}

    tokens = CELLS * CELLS
    row = _row(config, ids, len(images), tokens)
    found = row.count(config.image_token_id)
    if found != tokens * len(images):
        raise InputError(
            f"the ids have {found} image tokens ({config.image_token_id}), and {len(images)} images make {tokens} "
            f"each: write {tokens * len(images)}, or none (the images then come first)"
        )
    input_ids = torch.tensor([row], dtype=torch.int64, device="cpu")
    out = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if images:
        types = (input_ids == config.image_token_id).to(torch.int32)
        out |= {"pixel_values": torch.cat(pixels), "image_grid_thw": grid, "mm_token_type_ids": types}
    return out


def _row(config: Any, ids: Sequence[int] | None, images: int, tokens: int) -> list[int]:
    special = {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
    row = byte_ids(int(config.text_config.vocab_size), ids, special)
    if config.image_token_id in row:
        return row
    image = [config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id]
    return image * images + row


def _patches(image: Tensor, vision: Any) -> Tensor:
    """(3, H, W) in [0, 1] -> (patches, 3 * frames * patch**2) in [-1, 1], one merged block of patches after another;
    an image is the same in all frames of its patches."""
    merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
    frames = int(vision.temporal_patch_size)
    rows, columns = (n // (merge * patch) for n in image.shape[1:])
    blocks = (image * 2 - 1).reshape(3, rows, merge, patch, columns, merge, patch)
    blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    return blocks.expand(-1, -1, -1, -1, -1, frames, -1, -1).reshape(rows * columns * merge**2, -1).contiguous()
