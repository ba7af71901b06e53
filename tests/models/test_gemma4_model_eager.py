# SPDX-License-Identifier: Apache-2.0
"""The whole Gemma4 in the float phase against transformers: images, videos, audio, masks, caches, generate."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import gemma4_model_tiny as tiny
import pytest
import torch
from gemma4_model_tiny import FLAT_FRAMES, IMAGE, inputs
from hf_names import CACHE
from torch import Tensor
from transformers import DynamicCache, StaticCache

import pyquant
from pyquant.wrap import Phase, set_phase
from pyquant.wrap.hf import cache_of

A, B, C = ("image", 4, 4), ("image", 2, 6), ("image", 2, 2)
LONG = ("image", 8, 4)  # 8 tokens, more than the window
V, W = ("video", 2, 2, 4), ("video", 3, 2, 2)
SOUND, BREATH = ("audio", 22), ("audio", 5)
ROWS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "text": ((9,),),
    "image_first": ((A, 5),),
    "image_middle": ((3, A, 4),),
    "image_last": ((6, A),),
    "image_alone": ((C,),),
    "images_apart": ((2, A, 3, B, 1, C, 2),),
    "images_adjacent": ((2, A, B, C, 3),),
    "image_longer_than_the_window": ((3, LONG, 4),),
    "video": ((2, V, 3),),
    "image_beside_video": ((2, A, V, 3),),
    "image_and_video": ((1, V, 3, A, 2),),
    "rows": ((2, A, 4), (7,), (1, B, 1, C, 3), (LONG,), (1,)),
    "rows_of_text": ((9,), (5,), (1,), (6,)),
}
PADDED = [name for name, rows in ROWS.items() if len(rows) > 1]
TOLERANCE = 1e-5  # of the largest logit
TYPES = "mm_token_type_ids"


def floating(fp: Any) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return q


@functools.cache
def pair(form: str = "e2b", **changes: Any) -> tuple[Any, Any]:
    fp = tiny.conditional(form, **changes)
    return fp, floating(fp)


def close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@torch.no_grad()
def agree(both: tuple[Any, Any], given: dict[str, Any], **more: Any) -> Any:
    """Equal logits at real tokens; returns ours."""
    fp, q = both
    expected, got = fp(**given, **more), q(**given, **more)
    mask = given.get("attention_mask")
    if mask is None or mask.dim() == 4:
        close(got.logits, expected.logits)
    else:
        close(got.logits[mask.bool()], expected.logits[mask.bool()])
    assert type(got) is type(expected)
    return got


# --- prompts ---


@pytest.mark.parametrize("form", ["e2b", "vision"])
@pytest.mark.parametrize("case", ROWS)
def test_prompts(form: str, case: str) -> None:
    given = inputs(*ROWS[case])
    agree(pair(form), given)
    if len(ROWS[case]) == 1:
        agree(pair(form), {name: value for name, value in given.items() if name not in (TYPES, "attention_mask")})


@pytest.mark.parametrize("form", ["no_ple", "k_eq_v", "all", "biased"])
def test_other_forms(form: str) -> None:
    for case in ("images_apart", "image_longer_than_the_window"):
        agree(pair(form), inputs(*ROWS[case]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("form", ["e2b", "vision"])
@pytest.mark.parametrize("case", PADDED)
def test_each_row_of_a_padded_batch(case: str, form: str, extra: int, side: str) -> None:
    """As transformers; with positions counted at real tokens also as the row alone."""
    both = pair(form)
    given = inputs(*ROWS[case], side=side, extra=extra)
    valid = given["attention_mask"].bool()
    agree(both, given)
    with torch.no_grad():
        got = both[1](**given, position_ids=(valid.cumsum(-1) - 1).clamp(min=0)).logits
        start = 0
        for row, parts in enumerate(ROWS[case]):
            own = {name: given[name][row : row + 1, valid[row]] for name in ("input_ids", TYPES)}
            images = sum(isinstance(part, tuple) for part in parts)
            if images:
                own |= {name: given[name][start : start + images] for name in ("pixel_values", "image_position_ids")}
            start += images
            close(got[row, valid[row]], both[1](**own).logits[0])


@pytest.mark.parametrize("patches", [16, 24])
def test_padding_patches_anywhere(patches: int) -> None:
    """The image processor puts them at the end; the model takes them where they are."""
    both, given = pair(), inputs((2, A, 3, B, 1, C, 2), patches=patches)
    expected = agree(both, given).logits
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(3))
    moved = {name: given[name][:, order] for name in ("pixel_values", "image_position_ids")}
    close(agree(both, given | moved).logits, expected)


@pytest.mark.parametrize("standardize", [False, True], ids=["clipped", "standardized"])
def test_standardize_on_and_off(standardize: bool) -> None:
    agree(pair(standardize=standardize), inputs((2, A, 3, ("video", 2, 2, 2), 1)))


@pytest.mark.skipif(not FLAT_FRAMES, reason="this release takes videos of one length only")
def test_videos_of_unequal_lengths() -> None:
    agree(pair(), inputs((2, V, 1, W), (A, W, 3)))


def test_models_of_sdpa() -> None:
    for form in ("e2b", "vision"):
        fp = tiny.conditional(form)
        for part in (fp.config, fp.config.text_config, fp.config.vision_config):
            part._attn_implementation = "sdpa"
        both = fp, floating(fp)
        for case in ("image_middle", "rows"):
            agree(both, inputs(*ROWS[case]))


# --- audio ---

HEARD: dict[str, tuple[tuple[Any, ...], ...]] = {
    "audio": ((2, SOUND, 3),),
    "audio_first_and_last": ((SOUND, 2, BREATH),),
    "everything": ((1, A, 2, V, 1, SOUND, C, 1),),
    "everything_in_rows": ((1, SOUND, 2), (V, 1, A), (4,), (A, BREATH, 1, V)),
}


@pytest.mark.parametrize("form", ["e2b", "vision"])
@pytest.mark.parametrize("case", HEARD)
def test_audio_and_everything_together(form: str, case: str) -> None:
    """Audio stays causal, also where images see themselves."""
    fp, q = pair(form, audio=True)
    for side in ("left", "right")[: len(HEARD[case])]:
        given = inputs(*HEARD[case], side=side)
        valid = given["attention_mask"].bool()
        with torch.no_grad():
            close(*(m.model.get_audio_features(*_clips(given)).pooler_output for m in (q, fp)))
            expected, got = fp(**given).logits[valid], q(**given).logits[valid]
        # rows of audio differ by 2e-6, which text layers make ten times as large: nothing scales their logits
        close(got, expected, 3 * TOLERANCE)


def _clips(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return given["input_features"], given["input_features_mask"]


# --- other ways to call ---


@torch.no_grad()
def test_embeddings_and_per_layer_inputs_instead_of_ids() -> None:
    """Placeholders are found by their rows. Without per-layer inputs HF takes the unscaled padding row there, and finds
    it in the table only if it is zero."""
    fp = tiny.conditional()
    fp.model.language_model.embed_tokens.weight[0] = 0
    both = fp, floating(fp)
    given = inputs((2, A, 3, V, 1), mask=False)
    input_ids = given.pop("input_ids")
    types = given[TYPES]
    embeds = fp.get_input_embeddings()(input_ids)
    rows = fp.model.language_model.get_per_layer_inputs(input_ids.masked_fill(types != 0, 0), None)
    from_ids = both[1](input_ids=input_ids, **given).logits
    close(agree(both, given, inputs_embeds=embeds).logits, from_ids)
    if "per_layer_inputs" in inspect.signature(fp.forward).parameters:  # else HF's model passes them on twice
        close(agree(both, given, inputs_embeds=embeds, per_layer_inputs=rows).logits, from_ids)
    text = inputs((9,), mask=False)
    embeds = fp.get_input_embeddings()(text["input_ids"])
    agree(both, {"inputs_embeds": embeds})


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5])], ids=["last", "three", "places"])
def test_places_of_logits(keep: Any) -> None:
    for form in ("e2b", "vision"):
        with torch.no_grad():
            expected, got = (m(**inputs((3, LONG, 2)), logits_to_keep=keep) for m in pair(form))
        close(got.logits, expected.logits)


def test_labels_give_transformers_loss() -> None:
    given = inputs((2, A, 4), (5, C), side="right")
    labels = given["input_ids"].masked_fill((given["attention_mask"] == 0) | (given["input_ids"] >= IMAGE), -100)
    with torch.no_grad():
        expected, got = (m(**given, labels=labels).loss for m in pair())
    close(got, expected)


@torch.no_grad()
def test_masks_of_four_dimensions_and_by_layer_type() -> None:
    given = inputs((2, A, 4), mask=False)
    length = given["input_ids"].shape[1]
    keep = torch.ones(length, length).tril().bool()
    keep[5:, 2] = False
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(1, 1, length, length).masked_fill(~keep, lowest)
    narrow = mask.masked_fill(~torch.ones_like(keep).triu(-2), lowest)
    for form in ("e2b", "vision"):
        by_type = {"full_attention": mask, "sliding_attention": narrow}
        agree(pair(form), given | {TYPES: None}, attention_mask=by_type)
    agree(pair(), given, attention_mask=mask)


@torch.no_grad()
def test_outputs_features_and_placeholders() -> None:
    fp, q = pair()
    given = inputs((2, A, 1, V, B))
    found = []
    for m in (fp, q):
        image = m.get_image_features(given["pixel_values"], given["image_position_ids"])
        more = {"num_frames_per_video": given["num_frames_per_video"]} if FLAT_FRAMES else {}
        video = m.model.get_video_features(given["pixel_values_videos"], given["video_position_ids"], **more)
        out = m(**given)
        whole = out.image_outputs.pooler_output if "image_outputs" in out else out.image_hidden_states
        found.append([*_parts(image.pooler_output), *_parts(video.pooler_output), *_parts(whole)])
    assert len(found[0]) == len(found[1])
    for expected, got in zip(*found, strict=True):
        close(got, expected)
    embeds = fp.get_input_embeddings()(given["input_ids"])
    for arguments in ((given["input_ids"], embeds), (None, embeds)):
        expected_masks = fp.model.get_placeholder_mask(*arguments)
        for mine, theirs in zip(q.model.get_placeholder_mask(*arguments), expected_masks, strict=True):
            assert torch.equal(mine, theirs[..., 0] if theirs.dim() == 3 else theirs)


def _parts(rows: Any) -> list[Tensor]:
    return [rows] if isinstance(rows, Tensor) else list(rows)


# --- cache ---

STEPS = {"token_by_token": [9, *range(10, 16)], "chunks": [9, 13, 15]}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["hybrid", "static"])
@pytest.mark.parametrize("form", ["e2b", "vision"])
@torch.no_grad()
def test_prompt_with_an_image_then_tokens(form: str, kind: str, steps: str) -> None:
    """As one forward over everything. Placeholders are in the prompt; one row has none and is padded."""
    fp, q = pair(form)
    whole = inputs((1, LONG, 6), (11,))
    valid = whole["attention_mask"].bool()
    expected = fp(**whole).logits[valid]
    cache: Any = DynamicCache(config=fp.config.text_config)
    if kind == "static":
        cache = StaticCache(config=fp.config.text_config, max_cache_len=20)
    parts, start = [], 0
    for end in STEPS[steps]:
        given = dict(whole) if not start else {}
        given |= {"input_ids": whole["input_ids"][:, start:end], "attention_mask": whole["attention_mask"][:, :end]}
        if not start:
            given[TYPES] = whole[TYPES][:, :end]
        out = q(**given, **{CACHE: cache})
        parts.append(out.logits)
        start = end
    close(torch.cat(parts, dim=1)[valid], expected)
    assert cache_of(out) is cache


@pytest.mark.parametrize("form", ["e2b", "vision"])
@torch.no_grad()
def test_an_image_after_a_cached_prompt(form: str) -> None:
    fp, q = pair(form)
    whole = inputs((2, A, 3, B, 2), mask=False)
    expected = fp(**whole).logits
    cut, patches = 2 + 4 + 3, whole["pixel_values"]
    cache = DynamicCache(config=fp.config.text_config)
    got = []
    for place, image in ((slice(0, cut), slice(0, 1)), (slice(cut, None), slice(1, 2))):
        given = {name: whole[name][:, place] for name in ("input_ids", TYPES)}
        given |= {"pixel_values": patches[image], "image_position_ids": whole["image_position_ids"][image]}
        got.append(q(**given, **{CACHE: cache}).logits)
    close(torch.cat(got, dim=1), expected)


# --- generate ---

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 7, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 2},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "no_cache": {"do_sample": False, "use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["e2b", "vision"])
def test_generate_gives_transformers_tokens(form: str, way: str) -> None:
    """Past the window twice; an image longer than it in one row, padding in the other."""
    options = {"max_new_tokens": 11, "eos_token_id": None, "disable_compile": True, **WAYS[way]}
    rows = ((1, LONG, 2),) if way == "beams" else ((1, LONG, 2), (A, 3))
    found = []
    for m in pair(form):
        torch.manual_seed(3)
        found.append(m.generate(**inputs(*rows), **options))
    assert torch.equal(*found)
    assert found[0].shape == (len(rows), 22)


def test_generate_with_everything() -> None:
    options = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    expected, got = (m.generate(**inputs(*HEARD["everything"]), **options) for m in pair("vision", audio=True))
    assert torch.equal(got, expected)
