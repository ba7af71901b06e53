# SPDX-License-Identifier: Apache-2.0
"""The whole Qwen3-VL in its float phase against transformers: prompts, cache, masks, positions, outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from qwen_model_tiny import IMAGE, PAD, ROWS, VOCAB, A, B, C, V, batch, model, tokens
from torch import Tensor
from transformers import DynamicCache

import pyquant
from pyquant.errors import InputError
from pyquant.wrap import Phase, set_phase

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def floating(fp: Any) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return q


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    fp = model()
    return fp, floating(fp)


@torch.no_grad()
def same(pair: tuple[Any, Any], given: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """Equal logits at real tokens; returns both outputs."""
    fp, q = pair
    expected, got = fp(**given, **more), q(**given, **more)
    mask = given.get("attention_mask")
    valid = mask.bool() if mask is not None and mask.dim() == 2 else torch.ones(got.logits.shape[:2], dtype=torch.bool)
    valid = valid[:, -got.logits.shape[1] :]
    torch.testing.assert_close(got.logits[valid], expected.logits[valid], **TOLERANCE)
    return expected, got


def sides(case: str) -> tuple[str, ...]:
    return ("left", "right") if len(ROWS[case]) > 1 else ("none",)


CASES = [(case, side) for case in ROWS for side in sides(case)]


@pytest.mark.parametrize(("case", "side"), CASES, ids=[f"{case}-{side}" for case, side in CASES])
def test_prompts(pair: tuple[Any, Any], case: str, side: str) -> None:
    expected, got = same(pair, batch(*ROWS[case], side=side))
    assert type(got) is type(expected)
    if getattr(expected, "rope_deltas", None) is not None:
        assert torch.equal(got.rope_deltas, expected.rope_deltas)


@pytest.mark.parametrize("empty", ["video", "image", "both"])
def test_a_grid_table_of_no_rows_is_no_image(pair: tuple[Any, Any], empty: str) -> None:
    """HF runs it: the processor of a batch without videos may pass such a table."""
    given = batch(*ROWS[{"video": "image_middle", "image": "video", "both": "text"}[empty]])
    none = torch.zeros(0, 3, dtype=torch.int64)
    given |= {f"{kind}_grid_thw": none for kind in ("image", "video") if empty in (kind, "both")}
    given.setdefault("mm_token_type_ids", torch.zeros_like(given["input_ids"], dtype=torch.int32))
    same(pair, given)
    expected, got = (m.generate(**given, max_new_tokens=3, do_sample=False) for m in pair)
    assert torch.equal(got, expected)
    source = "pixel_values_videos" if empty == "video" else "pixel_values"
    with torch.no_grad():
        assert torch.equal(pair[1](**given, **{source: torch.zeros(0, 96)}).logits, pair[1](**given).logits)
    with pytest.raises(InputError, match="grid_thw has no rows"):
        pair[1](**given, **{source: torch.zeros(4, 96)})


def test_pixels_that_are_bytes(pair: tuple[Any, Any]) -> None:
    given = batch(*ROWS["image_middle"])
    with pytest.raises(InputError, match=r"pixel_values are torch\.uint8, expected floating point"):
        pair[1](**{**given, "pixel_values": torch.zeros(given["pixel_values"].shape, dtype=torch.uint8)})


@pytest.mark.parametrize("case", ["text", "images_apart", "image_and_video"])
def test_without_a_mask(pair: tuple[Any, Any], case: str) -> None:
    same(pair, batch(*ROWS[case], mask=False))


def test_other_geometries() -> None:
    for overrides in (
        {"tie": False, "num_hidden_layers": 2},  # fewer layers than taps
        {"vision_config": {"deepstack_visual_indexes": [], "depth": 1}, "num_hidden_layers": 2},
        {"num_key_value_heads": 4, "attention_bias": True, "vision_config": {"spatial_merge_size": 1, "depth": 2}},
    ):
        fp = model(**overrides)
        given = batch((3, C, 2)) if overrides.get("vision_config", {}).get("spatial_merge_size") != 1 else None
        if given is None:  # each patch is a token
            given = batch((3, ("bare", (1, 4, 4)), 2))
            given |= {"pixel_values": given["pixel_values"][:4], "image_grid_thw": torch.tensor([[1, 2, 2]])}
        same((fp, floating(fp)), given)


def test_embeddings_instead_of_ids(pair: tuple[Any, Any]) -> None:
    """Without ids transformers takes every token for text when it makes positions; so do we. Given, they count."""
    fp, _ = pair
    given = batch((2, B, 4), (1, C, 3), side="left")
    positions, _ = fp.model.get_rope_index(
        given["input_ids"],
        mm_token_type_ids=given["mm_token_type_ids"],
        image_grid_thw=given["image_grid_thw"],
        attention_mask=given["attention_mask"],
    )
    with torch.no_grad():
        given["inputs_embeds"] = fp.get_input_embeddings()(given.pop("input_ids"))
    fp.model.rope_deltas = None
    same(pair, given)
    same(pair, given | {"position_ids": positions})
    same(pair, {"inputs_embeds": given["inputs_embeds"], "attention_mask": given["attention_mask"]})


@pytest.mark.parametrize("rank", ["2", "3", "4"])
def test_positions_given(pair: tuple[Any, Any], rank: str) -> None:
    given = batch((2, A, 4), (6, B), side="left")
    text = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    rotary = torch.stack([text, text // 2, text + 3])
    positions = {"2": text, "3": rotary, "4": torch.cat([text[None], rotary])}[rank]
    same(pair, given | {"position_ids": positions})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_two_dimensional_masks_of_any_type(pair: tuple[Any, Any], dtype: torch.dtype) -> None:
    q = pair[1]
    given = batch(*ROWS["rows"], side="left")
    with torch.no_grad():
        expected = q(**given).logits
        assert torch.equal(q(**given | {"attention_mask": given["attention_mask"].to(dtype)}).logits, expected)


@torch.no_grad()
def test_four_dimensional_masks(pair: tuple[Any, Any]) -> None:
    """transformers' eager attention would add a boolean one; its other ones take it as we do."""
    given = batch((2, A, 4), mask=False)
    length = given["input_ids"].shape[1]
    keep = torch.ones(length, length).tril().bool()
    keep[5:, 2] = False
    given["position_ids"] = torch.arange(length)[None]
    mask = torch.zeros(length, length).masked_fill(~keep, torch.finfo(torch.float32).min)
    _, got = same(pair, given | {"attention_mask": mask[None, None]})
    for other in (keep, keep.int()):
        assert torch.equal(pair[1](**given, attention_mask=other[None, None]).logits, got.logits)


# --- cache ---


@pytest.mark.parametrize("case", ["text", "images_apart", "rows"])
@torch.no_grad()
def test_prompt_then_tokens_over_a_cache(pair: tuple[Any, Any], case: str) -> None:
    """Without positions: they go on from the prompt, row by row, as in one forward over everything."""
    fp, q = pair
    given = batch(*ROWS[case], side="left" if case == "rows" else "none")
    rows = len(given["input_ids"])
    more = torch.randint(0, 60, (rows, 4), generator=torch.Generator().manual_seed(3))
    whole = dict(given)
    for name, extra in (
        ("input_ids", more),
        ("attention_mask", torch.ones_like(more)),
        ("mm_token_type_ids", more * 0),
    ):
        if name in whole:
            whole[name] = torch.cat([whole[name], extra.to(whole[name].dtype)], dim=1)
    expected = fp(**whole).logits[:, -4:]
    out = q(**given, use_cache=True)
    assert isinstance(out.past_key_values, DynamicCache)
    mask = given["attention_mask"]
    got = []
    for step in (slice(0, 1), slice(1, 2), slice(2, 4)):
        mask = torch.cat([mask, torch.ones_like(more[:, step])], dim=1)
        out = q(input_ids=more[:, step], attention_mask=mask, past_key_values=out.past_key_values)
        got.append(out.logits)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, **TOLERANCE)


@torch.no_grad()
def test_an_image_after_a_cached_prompt(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    whole = batch((2, A, 3, B, 2), mask=False)
    cut = 2 + 2 + tokens(A) + 3
    head = {name: whole[name][:, :cut] for name in ("input_ids", "mm_token_type_ids")}
    tail = {name: whole[name][:, cut:] for name in ("input_ids", "mm_token_type_ids")}
    patches = A[1] * A[2]
    pixels, grids = whole["pixel_values"], whole["image_grid_thw"]
    out = q(**head, pixel_values=pixels[:patches], image_grid_thw=grids[:1], use_cache=True)
    out = q(**tail, pixel_values=pixels[patches:], image_grid_thw=grids[1:], past_key_values=out.past_key_values)
    expected = fp(**whole).logits[:, cut:]
    torch.testing.assert_close(out.logits, expected, **TOLERANCE)


@torch.no_grad()
def test_prompts_that_take_turns_keep_their_own_positions(pair: tuple[Any, Any]) -> None:
    """transformers keeps one rope_deltas a model, which would be the other prompt's."""
    _, q = pair
    prompts = [batch((2, A, B, 3)), batch((4,)), batch((1, C, 1))]
    alone = []
    for given in prompts:
        cache = q(**given, use_cache=True).past_key_values
        alone.append(q(input_ids=torch.tensor([[5]]), past_key_values=cache).logits)
    caches = [q(**given, use_cache=True).past_key_values for given in prompts]
    turns = [q(input_ids=torch.tensor([[5]]), past_key_values=cache).logits for cache in caches]
    for expected, got in zip(alone, turns, strict=True):
        assert torch.equal(got, expected)


@torch.no_grad()
def test_rope_deltas_of_a_text_prompt_are_not_those_of_the_image_before(pair: tuple[Any, Any]) -> None:
    _, q = pair
    fresh = floating(model())
    q(**batch((2, A, B, 3)))
    assert q.rope_deltas is not None
    for tree in (fresh, q):
        out = tree(**batch((4,)), use_cache=True)
        tree.last = tree(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values).logits
        assert tree.rope_deltas is None
    assert torch.equal(fresh.last, q.last)


@torch.no_grad()
def test_positions_given_for_the_prompt_count_when_it_goes_on(pair: tuple[Any, Any]) -> None:
    _, q = pair
    given = batch((2, A, 3), mask=False)
    computed = q(**given, use_cache=True)
    positions, _ = q.model.get_rope_index(given["input_ids"], image_grid_thw=given["image_grid_thw"])
    q.model.rope_deltas = torch.tensor([[99]])
    explicit = q(**given, position_ids=positions, use_cache=True)
    after = [
        q(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values).logits for out in (computed, explicit)
    ]
    assert torch.equal(*after)


# --- outputs and helpers ---


def test_labels_and_what_of_the_logits_is_kept(pair: tuple[Any, Any]) -> None:
    given = batch((2, A, 3), (5, C), side="right")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    expected, got = same(pair, given, labels=labels)
    torch.testing.assert_close(got.loss, expected.loss, **TOLERANCE)
    for keep in (1, 3, torch.tensor([0, 2])):
        with torch.no_grad():
            expected, got = (m(**given, logits_to_keep=keep).logits for m in pair)
        torch.testing.assert_close(got, expected, **TOLERANCE)
    as_tuple = pair[1](**given, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], same(pair, given)[1].logits)


@torch.no_grad()
def test_features_placeholders_and_positions(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    given = batch((2, A, 1, ("video", V), B))
    for name, pixels, grid in (
        ("get_image_features", "pixel_values", "image_grid_thw"),
        ("get_video_features", "pixel_values_videos", "video_grid_thw"),
    ):
        for part in (lambda m: m, lambda m: m.model):
            expected = getattr(part(fp), name)(given[pixels], given[grid])
            got = getattr(part(q), name)(given[pixels], given[grid])
            assert type(got) is type(expected)
            _close(got.pooler_output, expected.pooler_output)
            _close(got.deepstack_features, expected.deepstack_features)
    embeds = fp.get_input_embeddings()(given["input_ids"])
    for ids in (given["input_ids"], None):
        expected_masks = fp.model.get_placeholder_mask(ids, embeds)
        for mine, theirs in zip(q.model.get_placeholder_mask(ids, embeds), expected_masks, strict=True):
            assert torch.equal(mine.expand_as(theirs), theirs)
    with pytest.raises(InputError, match="1 image tokens"):
        q.model.get_placeholder_mask(given["input_ids"], embeds, image_features=torch.zeros(1, 24))


def _close(got: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(got, expected, **TOLERANCE)
        return
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        _close(mine, theirs)


@torch.no_grad()
def test_encoder_outputs_made_before(pair: tuple[Any, Any]) -> None:
    _, q = pair
    given = batch((2, A, 1, ("video", V), B))
    expected = q(**given).logits
    pixels, videos = given.pop("pixel_values"), given.pop("pixel_values_videos")
    outputs = {
        "image": q.get_image_features(pixels, given["image_grid_thw"]),
        "video": q.get_video_features(videos, given["video_grid_thw"]),
    }
    assert torch.equal(q(**given, mm_encoder_outputs=outputs).logits, expected)
    assert set(outputs) == {"image", "video"}
    with pytest.raises(InputError, match="mm_encoder_outputs"):
        q(**given, pixel_values=pixels, mm_encoder_outputs=outputs)


def test_token_types_that_are_absent_come_from_the_ids(pair: tuple[Any, Any]) -> None:
    given = batch((2, A, 3, ("video", V)), (4, B), side="left")
    with torch.no_grad():
        expected = pair[1](**given).logits
        del given["mm_token_type_ids"]
        assert torch.equal(pair[1](**given).logits, expected)


# --- purity and refusals ---


@torch.no_grad()
def test_inputs_and_model_stay_as_they_are(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    given = batch(*ROWS["rows"], side="left")
    copies, state = copy.deepcopy(given), copy.deepcopy(fp.state_dict())
    q(**given, use_cache=True)
    for name, value in given.items():
        assert torch.equal(value, copies[name]), name
    for name, value in fp.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert q.lm_head.weight is q.get_input_embeddings().weight is fp.lm_head.weight


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fewer_pixels": ({"pixel_values": torch.zeros(12, 96)}, "12 rows"),
    "other_grid": ({"pixel_values": torch.zeros(4, 96), "image_grid_thw": torch.tensor([C])}, "4 image placeholder"),
    "odd_grid": ({"image_grid_thw": torch.tensor([[1, 3, 4]])}, "multiples of spatial_merge_size"),
    "no_grid": ({"image_grid_thw": None}, "grid_thw"),
    "no_pixels": ({"pixel_values": None, "image_grid_thw": torch.tensor([A, A])}, "1 more image grid"),
    "both": ({"inputs_embeds": torch.zeros(1, 8, 24)}, "either input_ids"),
    "neither": ({"input_ids": None}, "either input_ids"),
    "one_dimension": ({"input_ids": torch.zeros(8, dtype=torch.int64)}, "expected input_ids"),
    "videos_nowhere": (
        {"pixel_values_videos": torch.zeros(8, 96), "video_grid_thw": torch.tensor([[1, 4, 2]])},
        "0 video placeholder",
    ),
    "mask": ({"attention_mask": torch.ones(1, 3, dtype=torch.int64)}, "mask"),
    "record": ({"output_hidden_states": True}, "output_hidden_states"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(pair: tuple[Any, Any], case: str) -> None:
    change, message = REFUSED[case]
    given = batch((2, A, 2)) | change
    if case in ("one_dimension", "both", "neither"):
        given = {name: value for name, value in given.items() if name in ("input_ids", "inputs_embeds")}
    with pytest.raises(InputError, match=message):
        pair[1](**given)


def test_no_table_of_all_positions() -> None:
    """A mask or table of 262144 positions squared would be 256 GiB; ours are of the size of a call."""
    fp = model(max_position_embeddings=262144)
    q = floating(fp)
    sizes = {t.data_ptr(): t.numel() for t in [*q.parameters(), *q.buffers()]}
    own = sum(sizes.values()) - sum(p.numel() for p in fp.parameters())
    assert own < 10_000
    same((fp, q), batch((2, B, 2)))


def test_padding_ids_may_be_anything(pair: tuple[Any, Any]) -> None:
    _, q = pair
    given = batch((2, A, 3), (5,), side="left")
    with torch.no_grad():
        expected = q(**given).logits
        other = given | {"input_ids": torch.where(given["input_ids"] == PAD, VOCAB - 7, given["input_ids"])}
        valid = given["attention_mask"].bool()
        torch.testing.assert_close(q(**other).logits[valid], expected[valid], rtol=0, atol=0)
    assert IMAGE < VOCAB
