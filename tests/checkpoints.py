# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoint folders as they lie on a disk: random weights, a tokenizer, an image processor, pictures, prompts.

It owns making them offline and with no torchvision. What is done with them is the tests' business.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VIDEO = "<|video_pad|>"
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PATCH, MERGE = 4, 2


def tokenizer() -> Any:
    """A byte-level BPE with Qwen's special tokens and a chat template; it has a token for every byte."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=[*SPECIAL, VIDEO],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["what is this ? read the digits of the image"], trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=[*SPECIAL[1:]]
    )
    made.chat_template = TEMPLATE
    return made


def processor_files(folder: Path, *, images: bool = True) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json, as real folders have."""
    tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    if images:
        config = {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": MERGE,
            "size": {"shortest_edge": 8 * 8, "longest_edge": 64 * 64},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Nothing left at ones or zeros, and activations of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
        else:
            parameter.copy_(noise * (1.0 if "embed" in name else parameter[0].numel() ** -0.5))
    return model.eval()


def qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """The folder of `qwen3_vl_model`, with its processor."""
    folder.mkdir(parents=True, exist_ok=True)
    qwen3_vl_model(seed=seed).save_pretrained(folder)
    processor_files(folder)
    return folder


def qwen3_vl_model(*, seed: int = 0, **overrides: Any) -> Any:
    """A Qwen3-VL of two text layers and two vision blocks, deepstack and grouped heads on."""
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

    ids = {name: number for number, name in enumerate([*SPECIAL, VIDEO])}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **overrides,
    )
    return randomize(Qwen3VLForConditionalGeneration(config), seed)


def gemma4_vision(folder: Path, *, seed: int = 0) -> Path:
    """A Gemma4 vision tower of one layer with its image processor (70 soft tokens an image: the least it allows)."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionModel

    config = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pooling_kernel_size=2,
        patch_size=4,
        position_embedding_size=64,
    )
    model = randomize(Gemma4VisionModel(config), seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)  # type: ignore[operator]
    processor = {
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "max_soft_tokens": 70,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def image_processor(folder: Path) -> Any:
    """The folder's image processor by transformers alone; some releases find none without torchvision by themselves."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder)
    except ImportError:
        kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
        return getattr(transformers, kind.removesuffix("Fast") + "Pil").from_pretrained(folder)


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A smooth random picture, as PNG."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def copy(folder: Path, to: Path, *without: str) -> Path:
    """A checkpoint folder again, lacking some files."""
    shutil.copytree(folder, to)
    for name in without:
        (to / name).unlink()
    return to
