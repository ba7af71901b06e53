# SPDX-License-Identifier: Apache-2.0
"""A tiny whole Gemma4 in the form of E2B, and prompts with images for any model with a vision tower and text.

It owns their sizes; see pyquant.models.family.Example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyquant.errors import InputError
from pyquant.models.example import byte_ids, made_up_image, randomize_
from pyquant.models.gemma4.vision import example as vision

EOS, PAD, IMAGE, VIDEO, AUDIO, BOI, EOI, VOCAB = 256, 257, 258, 259, 260, 261, 262, 264  # ids below are bytes
SLIDING, FULL = "sliding_attention", "full_attention"


def tiny_model() -> nn.Module:
    """Four layers, 32 wide: sliding and full, the last two with keys of the first two and MLPs of double width;
    per-layer inputs, soft-cap, and the tiny vision tower. Its tokens are bytes."""
    from transformers.models.gemma4.configuration_gemma4 import Gemma4Config, Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForConditionalGeneration

    tower: Any = vision.tiny_model()
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "num_kv_shared_layers": 2,
        "sliding_window": 8,
        "hidden_size_per_layer_input": 8,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 10.0,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    config: Any = Gemma4Config(
        text_config=Gemma4TextConfig(**settings),
        vision_config=tower.config,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=BOI,
        eoi_token_id=EOI,
    )
    config._attn_implementation = "eager"
    model: Any = randomize_(Gemma4ForConditionalGeneration(config))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):  # there is no 1 / sqrt(head_dim): keep attention soft
                parameter.mul_(0.5)
            elif ".post_" in name:  # the residual stream is larger than what a layer adds to it
                parameter.mul_(0.3)
        for number, layer in enumerate(model.model.language_model.layers):
            layer.layer_scalar.fill_(0.8 + 0.1 * number)
    return cast(nn.Module, model.eval())


def example_inputs(model: nn.Module, images: Sequence[Any] = (), ids: Sequence[int] | None = None) -> dict[str, Tensor]:
    """A prompt in which each image follows the other, as many placeholders as it has soft tokens between its marks.

    ids: a prompt with placeholders for `images` in it, or text alone. Raises InputError for placeholders that do not
    fit the images, and for ids beyond the vocabulary.
    """
    config: Any = model.config
    text = config.get_text_config()
    given = [] if ids is not None and not len(images) else list(images) or [made_up_image()]
    visual: dict[str, Tensor] = {}
    soft: list[int] = []
    if given:
        tower: Any = cast(Any, getattr(model, "model", model)).vision_tower
        if tower is None:
            raise InputError(f"this {type(model).__name__} has no vision tower; leave images out")
        made = vision.example_inputs(tower, given)
        visual = {"pixel_values": made["pixel_values"], "image_position_ids": made["pixel_position_ids"]}
        pool = int(config.vision_config.pooling_kernel_size) ** 2
        soft = [count // pool for count in (made["pixel_position_ids"] >= 0).all(dim=-1).sum(dim=-1).tolist()]
    names = ("image_token_id", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id")
    marks = [getattr(config, name, None) for name in names]
    if ids is None:
        prompt = byte_ids(int(text.vocab_size), None, special={token for token in marks if token is not None})
        between = [[config.boi_token_id, *[config.image_token_id] * count, config.eoi_token_id] for count in soft]
        half = len(prompt) // 2
        row = [*prompt[:half], *(token for each in between for token in each), *prompt[half:]]
    else:
        row = byte_ids(int(text.vocab_size), ids)
        if row.count(config.image_token_id) != sum(soft):
            raise InputError(
                f"the prompt has {row.count(config.image_token_id)} image placeholder tokens ({config.image_token_id}),"
                f" and {len(soft)} images have {sum(soft)} soft tokens: repeat each placeholder as often"
            )
    input_ids = torch.tensor([row], dtype=torch.int64, device="cpu")
    types = (input_ids == int(config.image_token_id)).long()
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": types,
        **visual,
    }
