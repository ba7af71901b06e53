# SPDX-License-Identifier: Apache-2.0
"""Which graphs a Profile makes of a Qwen3-VL, and what their manifest says to whoever runs them.

It owns the list and the words. Writing files is exporter/bundle.py; host.py does what the manifest says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from pyquant.errors import ProfileError
from pyquant.models.qwen3_vl.adapters import FusionProfile, HeadProfile, WholeProfile, embedding_profile
from pyquant.models.qwen3_vl.generation import QuantQwen3VLForConditionalGeneration
from pyquant.models.qwen3_vl.model import QuantQwen3VLModel
from pyquant.models.qwen3_vl.text_static import TextProfile
from pyquant.models.qwen3_vl.vision_static import VisionProfile
from pyquant.wrap.attention import FILL

if TYPE_CHECKING:
    from pyquant.models.qwen3_vl.profiles import Profile

FAMILY = "qwen3_vl"
Part = tuple[nn.Module, Any]


def graphs(profile: Profile, q: nn.Module) -> dict[str, Part]:
    """File name -> (wrapper, its own profile), in the order in which a host runs them."""
    model = _model(q)
    text, limit = model.language_model, model.config.text_config.max_position_embeddings
    if profile.max_seq_len > limit:
        raise ProfileError(
            f"max_seq_len {profile.max_seq_len} is beyond the model's max_position_embeddings, {limit}; use a shorter "
            "one"
        )
    if profile.layers == "whole":
        whole = WholeProfile(profile.batch_size, profile.max_seq_len, profile.image_grids, profile.attention)
        return {whole.name: (model, whole)}
    parts: list[Part] = [(model.visual, VisionProfile(grid, profile.attention)) for grid in profile.image_grids]
    parts += [(text.embed_tokens, embedding) for embedding in _embeddings(profile)]
    for length in profile.prefill_lengths:
        if profile.image_grids:
            parts.append((model, FusionProfile(profile.batch_size, length, profile.batch_size * length)))
        parts += _text_parts(profile, model, length, 0)
    parts += _text_parts(profile, model, 1, profile.cache_len)
    if q is not model:
        parts.append((q, HeadProfile(profile.batch_size)))
    return {part_profile.name: (part, part_profile) for part, part_profile in parts}


def _embeddings(profile: Profile) -> list[Any]:
    kinds = []
    if profile.token_embedding != "fixed":
        kinds.append(embedding_profile(profile.batch_size))
    if profile.token_embedding != "dynamic":
        kinds += [embedding_profile(profile.batch_size, n) for n in sorted({1, *profile.prefill_lengths})]
    return kinds


def _text_parts(profile: Profile, model: QuantQwen3VLModel, length: int, past: int) -> list[Part]:
    text = model.language_model
    taps = model.taps if profile.image_grids and not past else 0
    layers = range(len(text.layers)) if profile.layers == "per_layer" else [None]
    return [(text, TextProfile(profile.batch_size, length, past, taps, layer, profile.attention)) for layer in layers]


def _model(q: nn.Module) -> QuantQwen3VLModel:
    if isinstance(q, QuantQwen3VLForConditionalGeneration):
        return q.model
    if isinstance(q, QuantQwen3VLModel):
        return q
    raise ProfileError(
        f"qwen3_vl.Profile is for a quantized Qwen3VLForConditionalGeneration or Qwen3VLModel, got {type(q).__name__}; "
        "its parts have VisionProfile and TextProfile"
    )


# --- the manifest ---


def manifest(profile: Profile, q: nn.Module) -> dict[str, Any]:
    """The entries that export_bundle merges into the manifest; those of `graphs` go to the graphs of that name."""
    model = _model(q)
    config, text = model.config, model.language_model
    attention: Any = text.layers[0].self_attn
    said: dict[str, Any] = {
        "family": FAMILY,
        "transformers": transformers.__version__,
        "batch_size": profile.batch_size,
        "max_seq_len": profile.max_seq_len,
        "prefill_lengths": list(profile.prefill_lengths),
        "layers": profile.layers,
        "image_grids": [list(grid) for grid in profile.image_grids],
        "num_hidden_layers": len(text.layers),
        "deepstack": model.taps if profile.image_grids else 0,
        "pixels": _pixels(config.vision_config),
        "positions": {
            "spatial_merge_size": model.merge,
            **{name: int(getattr(config, name)) for name in _TOKENS if getattr(config, name, None) is not None},
        },
        "rotary": _rotary(text.rotary_emb.float_rotary),
        "mask": {"fill": FILL, "keep": 0.0},
        "generation": _generation(q),
        "host": list(_WHOLE_STEPS if profile.layers == "whole" else _STEPS),
        "graphs": {name: _graph(part_profile, model) for name, (_, part_profile) in graphs(profile, q).items()},
    }
    if profile.layers != "whole":
        said["cache"] = {
            "capacity": profile.cache_len,
            "layout": "batch, kv_heads, tokens, head_dim",
            "kv_heads": int(text.config.num_key_value_heads),
            "head_dim": int(attention.head_dim),
        }
    return said


_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def _pixels(vision: Any) -> dict[str, Any]:
    """What a row of pixel_values is made of, and in which order rows stand, as HF's image processor has them."""
    return {
        "channels": int(vision.in_channels),
        "frames": int(vision.temporal_patch_size),
        "patch_size": int(vision.patch_size),
        "row": "channel, frame, y, x of one patch; an image is its own next frame",
        "order": "grid time, then merge x merge blocks line by line, then the patches of a block line by line",
    }


@torch.no_grad()
def _rotary(rotary: Any) -> dict[str, Any]:
    """HF's frequencies, and which position axis drives each, asked of HF's own module one axis at a time.

    Raises ProfileError for a kind of rotary embedding whose frequencies depend on the length.
    """
    kind = str(getattr(rotary, "rope_type", "default"))
    if kind in ("dynamic", "longrope"):
        raise ProfileError(
            f"rotary embeddings of type {kind!r} change their frequencies with the length of the sequence, which a "
            "manifest cannot say; set rope_type to 'default' or 'yarn' for the lengths of this bundle"
        )
    frequencies = rotary.inv_freq.detach().float().cpu()
    driven = []
    for axis in range(3):
        at = torch.zeros(3, 1, 1, dtype=torch.int64)
        at[axis] = 1
        _, sin = rotary(frequencies, at.to(rotary.inv_freq.device))
        driven.append(sin.flatten()[: len(frequencies)].cpu() != 0)
    axes: Tensor = torch.stack(driven).int().argmax(dim=0)
    return {
        "inv_freq": frequencies.tolist(),
        "axis": axes.tolist(),
        "mrope_section": [int((axes == axis).sum()) for axis in range(3)],
        "interleaved": bool((axes.diff() < 0).any()),
        "attention_scaling": float(rotary.attention_scaling),
        "signed_sin": "the first half of sin is negated",
    }


def _generation(q: nn.Module) -> dict[str, Any]:
    config = getattr(q, "generation_config", None)
    names = ("eos_token_id", "pad_token_id")
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


def _graph(profile: Any, model: QuantQwen3VLModel) -> dict[str, Any]:
    """`kind` and what a tensor means; "range" are the integers that an input takes, both ends included."""
    if isinstance(profile, VisionProfile):
        return {"kind": "vision", "grids": [list(grid) for grid in profile.grids], "meaning": _MEANING["vision"]}
    if isinstance(profile, FusionProfile):
        places = profile.batch_size * profile.seq_len
        last = places + profile.visual_tokens - 1
        return {
            "kind": "fusion",
            "seq_len": profile.seq_len,
            "visual_tokens": profile.visual_tokens,
            "meaning": _MEANING["fusion"],
            "range": {"visual_index": [0, last]},
        }
    if isinstance(profile, HeadProfile):
        return {"kind": "lm_head", "meaning": _MEANING["lm_head"]}
    ids = {"input_ids": [0, int(model.config.text_config.vocab_size) - 1]}
    if isinstance(profile, WholeProfile):
        images = VisionProfile(profile.image_grids).tokens(model.merge) if profile.image_grids else 0
        ranges = {**ids, "visual_index": [0, profile.batch_size * profile.seq_len + images - 1]}
        return {"kind": "model", "seq_len": profile.seq_len, "meaning": _MEANING["model"], "range": ranges}
    if isinstance(profile, TextProfile):
        kind = "decode" if profile.past_len else "prefill"
        layer = {} if profile.layer is None else {"layer": profile.layer}
        return {"kind": kind, "seq_len": profile.seq_len, **layer, "meaning": _MEANING["text"]}
    length = profile.inputs["input_ids"]
    said = {"kind": "token_embedding", "meaning": _MEANING["token_embedding"], "range": ids}
    return said if length.dynamic is not None else {**said, "seq_len": length.shape[1]}


_TABLES = {
    "attention_mask": "0 where a query may look, the fill elsewhere: later places, padding, unused places of the cache",
    "cos": "cosine of position times frequency, for both halves of a head, times attention_scaling",
    "signed_sin": "sine alike, its first half negated",
}
_INDEX = (
    "row of [text ; visual rows] for each place: b * seq_len + s where place s of row b holds text, batch_size * "
    "seq_len + r where it holds visual row r"
)
_MEANING: dict[str, dict[str, str]] = {
    "vision": {
        "pixel_values": "patches of the image as HF's processor makes them, one row each",
        "image_embeds": "visual tokens, one row each",
        "deepstack_*": "what is added to the visual tokens after decoder layer * (0 is the first), one row each",
    },
    "token_embedding": {"input_ids": "token ids; padding may be any", "inputs_embeds": "embeddings of text"},
    "fusion": {
        "text_embeds": "token_embedding's output",
        "visual_embeds": "image_embeds of all images, then all videos, in a row; unused rows may hold anything",
        "visual_deepstack_*": "deepstack_* of the same, in the same order",
        "visual_index": _INDEX,
        "inputs_embeds": "text and visual embeddings at their places",
        "deepstack_*": "the addend after decoder layer *, zero at text",
    },
    "text": {
        **_TABLES,
        "inputs_embeds": "what enters the first layer",
        "deepstack_*": "the addend after decoder layer *, zero at text",
        "deepstack": "the addend after this layer, zero at text",
        "past_key*": "rotated keys of the cache, from place 0 of each row on",
        "past_value*": "values of the cache alike",
        "new_key*": "rotated keys of the new tokens, to be written behind those of each row in the cache",
        "new_value*": "values of the new tokens alike",
        "hidden_states": "hidden states before the final norm (an input of a layer: before that layer)",
        "hidden_states_out": "hidden states after this layer",
    },
    "lm_head": {
        "hidden_states": "of the last token of each row, before the final norm, which is in this graph",
        "logits": "of the next token",
    },
    "model": {
        **_TABLES,
        "input_ids": "token ids; at visual places any",
        "pixel_values": "patches of all images of the profile in turn",
        "visual_index": _INDEX,
        "last_hidden_state": "hidden states after the final norm",
    },
}
_NUMBERS = (
    "numbers: an integer q of a tensor with `quant` stands for (q - zero_point) * scale; a number x becomes "
    "round(x / scale) + zero_point, halves away from zero, kept within the type (a signed one of zero_point 0: "
    "without its lowest value)"
)
_PIXELS = (
    "pixels: resize an image to height * patch_size x width * patch_size of a grid, rescale and normalize as the "
    "checkpoint's preprocessor_config.json says (it is not in this bundle, nor is the tokenizer), cut it by `pixels`"
)
_POSITIONS = (
    "positions: text takes one step on all three axes (time, height, width); an image of h x w patches starts where "
    "the text before it ended, its tokens differ in height and width by their place among h / merge x w / merge, and "
    "what follows starts max(h, w) / merge further; a video does so frame by frame",
    "rotary: angle j of a token is inv_freq[j] times its position on axis[j]; cos and sin are attention_scaling times "
    "those of the angles, written twice side by side, and the first half of sin is negated",
)
_STEPS = (
    _NUMBERS,
    _PIXELS,
    "take padding away: each row starts at place 0 of a prefill length that holds the longest",
    "vision: one call for each image; a video by its own grid, or frame by frame; rows in the order of the prompt, "
    "images before videos",
    "token_embedding, and fusion when there are visual rows; a prompt without any goes to prefill as it is, with zeros "
    "for deepstack",
    *_POSITIONS,
    "prefill: mask later places and places from the end of each row on; write new keys and values of real tokens into "
    "the cache from place 0 on",
    "lm_head on the hidden state of each row's last token; choose the next token",
    "decode: past keys and values at places 0 to length - 1 of each row, the new token at the end of the mask; its "
    "position is that of the last token plus 1 on every axis; write new keys and values at place length",
    "where an output and the input it goes to have unequal quantization, quantize again",
)
_WHOLE_STEPS = (
    _NUMBERS,
    _PIXELS,
    "one call with all images of the profile; places after the prompt are padding, to be masked",
    *_POSITIONS,
)
