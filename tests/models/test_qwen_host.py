# SPDX-License-Identifier: Apache-2.0
"""The host side of a Qwen3-VL bundle over the graphs' adapters: tokens and logits of the quantized tree, any layout."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_bundle_tiny import PROMPTS, Eager, profile, tree
from qwen_model_tiny import IMAGE, A, B, C, batch, quantized
from torch import Tensor

import pyquant
from pyquant.decoder.turn import Past
from pyquant.errors import InputError, PhaseError, ProfileError
from pyquant.models import qwen3_vl
from pyquant.models.qwen3_vl.host import host as Host
from pyquant.verify import peir
from tests import checkpoints

LAYOUTS: dict[str, dict[str, Any]] = {
    "stack": {},
    "per_layer": {"layers": "per_layer"},
    "per_head": {"attention": "per_head"},
    "one_length": {"prefill_lengths": (), "token_embedding": "dynamic"},
    "fixed_embeddings": {"token_embedding": "fixed"},
}


@cache
def eager(layout: str = "stack", batch_size: int = 1) -> Eager:
    return Eager(tree()[1], profile(batch_size=batch_size, **LAYOUTS[layout]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_the_tree(layout: str, prompt: str) -> None:
    _, q = tree()
    run, given = eager(layout), batch(PROMPTS[prompt])
    expected = q.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layout", ["stack", "per_layer"])
def test_rows_of_a_batch(layout: str, side: str) -> None:
    """Rows of unequal length; padded on the right, transformers itself would go on after the padding."""
    _, q = tree()
    rows = [(1, A, 2), (5,), (C, 3, B)]
    run, given = eager(layout, 3), batch(*rows, side=side)
    expected = q.generate(**batch(*rows, side="left"), max_new_tokens=5, do_sample=False)[:, -5:]
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5)[:, -5:], expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_are_those_of_the_tree(prompt: str) -> None:
    """Prefill and every decode step, far closer than quantization itself brings them to the float model."""
    fp, q = tree()
    run, given = eager(), batch(PROMPTS[prompt])
    seen: list[Tensor] = []

    def greedy(logits: Tensor, tokens: Tensor) -> Tensor:
        seen.append(logits)
        return logits[:, :60].argmax(dim=-1)  # no placeholder: it would want an image

    tokens = run.host().generate(run, **given, max_new_tokens=4, sampler=greedy, eos_token_id=-1)
    whole = {**given, "input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
    whole.pop("mm_token_type_ids", None)
    with torch.no_grad():
        expected, reference = (m(**whole, logits_to_keep=4).logits[0] for m in (q, fp_with_types(fp)))
    assert peir(expected, torch.cat(seen)) <= 0.1 * peir(reference, expected)


def fp_with_types(fp: Any) -> Any:
    def call(**given: Any) -> Any:
        types = (given["input_ids"] == IMAGE).int() + 2 * (given["input_ids"] == 62).int()
        return fp(**given, **({"mm_token_type_ids": types} if types.any() else {}))

    return call


def test_without_quantization() -> None:
    fp, q = tree("float")
    given = batch(PROMPTS["apart"])
    run = Eager(q, profile())
    tokens = run.host().generate(run, **given, max_new_tokens=6)
    assert torch.equal(tokens, fp.generate(**given, max_new_tokens=6, do_sample=False))


def test_a_video_by_its_own_grid_or_frame_by_frame() -> None:
    """Frames do not see each other, so both are the same rows."""
    _, q = tree()
    given = batch(PROMPTS["video"])
    expected = q.generate(**given, max_new_tokens=4, do_sample=False)
    whole, frames = (Eager(q, profile(image_grids=grids)) for grids in (((2, 4, 2), (1, 4, 2)), ((1, 4, 2),)))
    for run in (whole, frames):
        assert torch.equal(run.host().generate(run, **given, max_new_tokens=4), expected)
    assert "vision_t2_h4_w2" in whole.seen
    assert "vision_t1_h4_w2" not in whole.seen


@pytest.mark.parametrize("prompt", ["image_last", "video", "text"])
def test_a_grid_table_of_no_rows_is_no_image(prompt: str) -> None:
    given = batch(PROMPTS[prompt])
    full = dict(given)
    full.setdefault("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64))
    full.setdefault("video_grid_thw", torch.zeros(0, 3, dtype=torch.int64))
    full.setdefault("pixel_values_videos", torch.zeros(0, 96))
    run = eager()
    expected = run.host().generate(run, **given, max_new_tokens=3)
    assert torch.equal(run.host().generate(run, **full, max_new_tokens=3), expected)


def test_an_answer_that_ends() -> None:
    """The token that comes second ends a row: what follows is padding, and the loop stops with the last row."""
    _, q = tree()
    run, given = eager("stack", 3), batch((1, A, 2), (5,), (C, 3, B), side="left")
    free = q.generate(**given, max_new_tokens=6, do_sample=False)[:, -6:]
    ends = int(free[0, 1])
    options = {"max_new_tokens": 6, "eos_token_id": ends, "pad_token_id": 0}
    expected = q.generate(**given, do_sample=False, **options)
    assert torch.equal(run.host().generate(run, **given, **options), expected)
    several = [ends, int(free[1, 0])]
    expected = q.generate(**given, do_sample=False, **{**options, "eos_token_id": several})
    assert torch.equal(run.host().generate(run, **given, **{**options, "eos_token_id": several}), expected)


def test_a_sampler_chooses() -> None:
    run, given = eager(), batch(PROMPTS["text"])
    tokens = run.host().generate(run, **given, max_new_tokens=3, sampler=lambda logits, _: logits.argmin(-1))
    greedy = run.host().generate(run, **given, max_new_tokens=3)
    assert not torch.equal(tokens, greedy)
    assert tokens.shape == greedy.shape


def test_the_longest_that_fits() -> None:
    """max_seq_len 28 is 24 tokens of the prompt and 4 behind it; one more token needs no place in the cache."""
    _, q = tree()
    given = batch((24,))
    run = eager()
    expected = q.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5), expected)
    with pytest.raises(InputError, match="at most 5 new tokens"):
        run.host().generate(run, **given, max_new_tokens=6)
    full = Eager(q, profile(image_grids=(), prefill_lengths=(28,)))
    given = batch((28,))
    expected = q.generate(**given, max_new_tokens=1, do_sample=False)
    assert torch.equal(full.host().generate(full, **given, max_new_tokens=1), expected)


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
def test_a_prompt_of_one_token_in_a_prefill_of_one(layers: str) -> None:
    """It has the inputs of every prefill; a decode step, of one token too, has no addends."""
    _, q = tree()
    run, given = Eager(q, profile(prefill_lengths=(1, 8), layers=layers)), batch((1,))
    expected = q.generate(**given, max_new_tokens=3, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=3), expected)
    assert run.calls[1].startswith("prefill_s1")


@torch.no_grad()
def test_hidden_states_of_text() -> None:
    """As the likelihood of text needs them, without an answer."""
    _, q = tree()
    run, ids = eager(batch_size=2), batch((7,), (7,))["input_ids"]
    hidden = run.host().hidden_states(run, ids)
    assert torch.equal(q.model.language_model.norm(hidden), q.model(ids).last_hidden_state)


def test_two_profiles_do_not_disturb_each_other() -> None:
    _, q = tree()
    given = batch(PROMPTS["apart"])
    run = Eager(q, profile())
    with torch.no_grad():
        before = run.host().generate(run, **given, max_new_tokens=4), q(**given).logits
        other = Eager(
            q, profile(image_grids=(B,), prefill_lengths=(5,), max_seq_len=9, attention="per_head", batch_size=2)
        )
        other.host().generate(other, **batch((2,), (3,), side="left"), max_new_tokens=2)
        after = run.host().generate(run, **given, max_new_tokens=4), q(**given).logits
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)


# --- long prompts and chats ---


@cache
def appending(batch_size: int = 1, layers: str = "stack") -> Eager:
    changes: dict[str, Any] = {"prefill_lengths": (4,), "append_lengths": (3, 4), "max_seq_len": 64, "layers": layers}
    return Eager(tree()[1], profile(batch_size=batch_size, **changes))


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_long_prompt_goes_in_parts(layers: str, prompt: str) -> None:
    """Images begin in one part and end in another."""
    _, q = tree()
    run, given = appending(1, layers), batch(PROMPTS[prompt])
    assert given["input_ids"].shape[1] > 4
    expected = q.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5), expected)


def test_long_rows_of_a_batch() -> None:
    _, q = tree()
    rows = [(1, A, 2), (5,), (C, 3, B)]
    run, given = appending(3), batch(*rows, side="left")
    expected = q.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5), expected)


def test_a_chat_with_an_image_in_each_turn() -> None:
    """Positions go on behind the images of earlier turns; the tree computes the whole text."""
    _, q = tree()
    run, past, host = appending(), Past(), appending().host()
    turns: list[dict[str, Any]] = [batch((2, A, 1)), batch((3,)), batch((1, C, B, 2))]
    options = {"max_new_tokens": 3, "eos_token_id": None, "suppress_tokens": list(range(60, 64))}  # no placeholders
    text = torch.empty(1, 0, dtype=torch.int64)
    pixels: list[Tensor] = []
    grids: list[Tensor] = []
    for given in turns:
        new = given["input_ids"]
        if given.get("pixel_values") is not None:
            pixels.append(given["pixel_values"])
            grids.append(given["image_grid_thw"])
        text = torch.cat([text, new], dim=1)
        whole = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)}
        types = (text == IMAGE).int()
        expected = q.generate(text, **whole, mm_token_type_ids=types, **options, do_sample=False)
        got = host.generate(run, **given, past=past, **options)
        assert torch.equal(got, expected[:, -new.shape[1] - 3 :])
        text = expected
    assert torch.equal(past.ids, text)
    with pytest.raises(InputError, match=r"1 more image grid\(s\) than the prompt has runs"):
        host.generate(run, batch((3,))["input_ids"], pixels[0], grids[0], past=past, **options)
    assert torch.equal(past.ids, text)


def test_the_whole_model_in_one_graph_has_no_chat() -> None:
    run = Eager(tree()[1], profile(layers="whole", prefill_lengths=(), image_grids=()))
    with pytest.raises(InputError, match=r"without a cache, which a chat needs; export with layers=.stack"):
        run.host().generate(run, **batch((3,)), past=Past())
    with pytest.raises(ProfileError, match="has no cache to append to; leave append_lengths out"):
        profile(layers="whole", prefill_lengths=(), append_lengths=(4,))


# --- one form of the token embedding ---


@pytest.mark.parametrize(
    ("target", "rows", "names"),
    [
        ("circle", 1, ["token_embedding"]),
        ("circle", 2, ["token_embedding"]),
        ("luci", 1, ["token_embedding"]),
        ("onert", 1, ["token_embedding"]),
        ("onert", 2, ["token_embedding_s1", "token_embedding_s8", "token_embedding_s24"]),
    ],
)
def test_the_token_table_stands_in_one_form(target: str, rows: int, names: list[str]) -> None:
    _, q = tree()
    chosen = profile(batch_size=rows).for_target(target)
    assert [name for name in chosen.graphs(q) if name.startswith("token")] == names
    explicit = profile(batch_size=rows, token_embedding="both")
    assert explicit.for_target(target) is explicit
    assert list(chosen.graphs(q)) == list(chosen.manifest(q)["graphs"])


# --- the whole model in one graph ---


WHOLE: dict[str, tuple[Any, ...]] = {
    "two_images": ((2, A, 1, C, 1),),
    "text": ((6,),),
    "image_and_video": ((1, C, ("video", (2, 4, 2)), 1),),
    "rows": ((1, A, 2), (5,), (C, 3)),
}


def whole(case: str, length: int = 24) -> tuple[Eager, dict[str, Any]]:
    given = batch(*WHOLE[case], side="left")
    tables = (given.get(f"{kind}_grid_thw", torch.zeros(0, 3)) for kind in ("image", "video"))
    grids = tuple(tuple(map(int, grid)) for table in tables for grid in table)
    options = {"layers": "whole", "max_seq_len": length, "prefill_lengths": (), "image_grids": grids}
    return Eager(tree()[1], profile(batch_size=len(WHOLE[case]), **options)), given


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_model_in_one_graph_generates(case: str) -> None:
    _, q = tree()
    run, given = whole(case)
    assert list(run.parts) == ["model", "lm_head"]
    expected = q.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=5), expected)
    options = {
        "max_new_tokens": 5,
        "do_sample": True,
        "top_k": 9,
        "repetition_penalty": 1.5,
        "eos_token_id": [65, 3, 9],
    }
    torch.manual_seed(2)
    expected = q.generate(**given, **options)
    assert torch.equal(run.host().generate(run, **given, seed=2, **options), expected)


def test_the_last_place_of_the_whole_graph() -> None:
    """A prompt of 6 in 8 places: 3 new tokens, the last of which needs no place."""
    _, q = tree()
    run, given = whole("text", 8)
    expected = q.generate(**given, max_new_tokens=3, do_sample=False)
    assert torch.equal(run.host().generate(run, **given, max_new_tokens=3), expected)
    with pytest.raises(InputError, match="at most 3 new tokens"):
        run.host().generate(run, **given, max_new_tokens=4)


@torch.no_grad()
def test_hidden_states_of_the_whole_graph_come_before_the_norm() -> None:
    _, q = tree()
    run, given = whole("two_images")
    run.host().generate(run, **given, max_new_tokens=1)
    adapter, length = run.adapters["model"], given["input_ids"].shape[1]
    hidden = adapter(*(run.seen["model"][name] for name in adapter.input_specs))
    expected = q.model(**given).last_hidden_state
    assert peir(expected, q.model.language_model.norm(hidden)[:, :length]) < 0.005


@pytest.mark.parametrize(
    "pieces", [(5,), (2, A, C, A), (2, C, A), (2, A)], ids=["none", "more", "another_order", "fewer"]
)
def test_the_whole_graph_refuses_other_images(pieces: tuple[Any, ...]) -> None:
    run, _ = whole("two_images")
    with pytest.raises(InputError, match=r"of the grids \[\(1, 4, 4\), \(1, 2, 2\)\], and this one has "):
        run.host().generate(run, **batch(pieces), max_new_tokens=2)
    text, _ = whole("text")
    with pytest.raises(InputError, match=r"of the grids \[\], and this one has \[\(1, 4, 4\)\]"):
        text.host().generate(text, **batch((2, A)), max_new_tokens=2)


def test_the_model_without_its_head() -> None:
    _, q = tree()
    names = set(profile().graphs(q.model))
    assert "lm_head" not in names
    assert names < set(profile().graphs(q))
    for layers in ("stack", "per_layer", "whole"):
        own = profile(layers=layers, **({"prefill_lengths": ()} if layers == "whole" else {}))
        with pytest.raises(InputError, match="no lm_head"):
            Host(own.manifest(q.model))


# --- the manifest ---


def test_pixels_are_those_of_the_image_processor(tmp_path: Path) -> None:
    """`pixels`, followed word by word, gives the rows that HF's own processor gives."""
    pixels, merge = eager().manifest["pixels"], eager().manifest["positions"]["spatial_merge_size"]
    checkpoints.processor_files(tmp_path)
    process = checkpoints.image_processor(tmp_path)
    size, frames = pixels["patch_size"], pixels["frames"]
    image = torch.randint(0, 256, (pixels["channels"], 4 * size, 6 * size), generator=torch.Generator().manual_seed(0))
    made = process(
        image.byte().numpy(), input_data_format="channels_first", do_resize=False, patch_size=size, merge_size=merge,
        temporal_patch_size=frames, return_tensors="pt",
    )  # fmt: skip
    mean, deviation = (torch.tensor(getattr(process, name))[:, None, None] for name in ("image_mean", "image_std"))
    page = (image / 255 - mean) / deviation
    rows = []
    for block_y, block_x in product(range(4 // merge), range(6 // merge)):
        for y, x in product(range(merge), range(merge)):
            top, left = (block_y * merge + y) * size, (block_x * merge + x) * size
            patch = page[:, top : top + size, left : left + size]
            rows.append(patch[:, None].expand(-1, frames, -1, -1).flatten())
    assert made["image_grid_thw"].tolist() == [[1, 4, 6]]
    torch.testing.assert_close(torch.stack(rows), made["pixel_values"], rtol=0, atol=1e-6)


# --- what is refused ---

REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "grid": ((2, (1, 8, 2)), {}, r"no vision graph for the grid \(1, 8, 2\)"),
    "odd_grid": ((2, A), {"image_grid_thw": torch.tensor([[1, 5, 4]])}, "multiples of spatial_merge_size"),
    "long_prompt": ((25,), {}, r"25 tokens, more than every prefill length of this bundle \[8, 24\]"),
    "long_answer": ((10,), {"max_new_tokens": 20}, "cache longer than max_seq_len 28"),
    "no_answer": ((4,), {"max_new_tokens": 0}, "at least 1"),
    "two_rows": ((4,), {"input_ids": torch.zeros(2, 4, dtype=torch.int64), "attention_mask": None}, "batch_size=1"),
    "list": ((4,), {"input_ids": [[1, 2, 3, 4]]}, r"a tensor of integers \(1, tokens\), got a list"),
    "float_ids": ((4,), {"input_ids": torch.zeros(1, 4)}, "input_ids are integers"),
    "mask": ((4,), {"attention_mask": torch.ones(1, 3)}, r"attention_mask is \(1, 3\), expected a tensor \(1, 4\)"),
    "mask_list": ((4,), {"attention_mask": [[1] * 4]}, r"attention_mask is a list, expected a tensor \(1, 4\)"),
    "types_list": ((4,), {"mm_token_type_ids": [[0] * 4]}, r"mm_token_type_ids is a list, expected a tensor \(1, 4\)"),
    "all_padding": ((4,), {"attention_mask": torch.zeros(1, 4)}, "all padding"),
    "no_pixels": ((2, A), {"pixel_values": None}, "belong together"),
    "no_image": ((2, A), {"pixel_values": None, "image_grid_thw": None}, "no grid is left"),
    "bytes": ((2, A), {"pixel_values": torch.zeros(16, 96, dtype=torch.uint8)}, "are torch.uint8, expected floating"),
    "few_pixels": ((2, A), {"pixel_values": torch.zeros(12, 96)}, "12 rows"),
    "other_image": ((2, A), {"pixel_values": torch.zeros(4, 96), "image_grid_thw": torch.tensor([C])}, "image"),
    "image_nowhere": ((4,), {"pixel_values": torch.zeros(4, 96), "image_grid_thw": torch.tensor([C])}, "1 more image"),
    "types": ((2, A), {"mm_token_type_ids": torch.zeros(1, 8, dtype=torch.int64)}, "contradict"),
    "vocabulary": (
        (4,),
        {"input_ids": torch.tensor([[1, 2, 3, 67]])},
        r"has the token id 67 at \[0, .\], out of the range 0 to 66 \(the vocabulary has 67\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    prompt, change, message = REFUSED[case]
    run = eager()
    given = {"max_new_tokens": 2, **batch(prompt), **change}
    with pytest.raises(InputError, match=message):
        run.host().generate(run, **given)


PROFILES: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"max_seq_len": 1}, "max_seq_len is an integer of at least 2"),
    "prefill": ({"prefill_lengths": (8, 64)}, "prefill length 64 is more than max_seq_len 28"),
    "prefill_text": ({"prefill_lengths": "8"}, "prefill_lengths are integers"),
    "prefill_zero": ({"prefill_lengths": (0,)}, "at least 1"),
    "rows": ({"batch_size": 0}, "batch_size"),
    "layers": ({"layers": "some"}, "layers is one of stack, per_layer, whole"),
    "attention": ({"attention": "flash"}, "attention is one of"),
    "twice": ({"image_grids": (A, A)}, "is there twice"),
    "grid": ({"image_grids": ((1, 4),)}, "triples"),
    "whole": ({"layers": "whole"}, "leave prefill_lengths out"),
}


@pytest.mark.parametrize("case", PROFILES)
def test_profiles_that_cannot_be(case: str) -> None:
    change, message = PROFILES[case]
    with pytest.raises(ProfileError, match=message):
        profile(**change)


def test_profiles_that_contradict_the_model() -> None:
    _, q = tree()
    with pytest.raises(ProfileError, match="max_position_embeddings, 128"):
        profile(max_seq_len=200).graphs(q)
    part, own = profile(image_grids=((1, 3, 4),)).graphs(q)["vision_t1_h3_w4"]
    with pytest.raises(ProfileError, match="spatial_merge_size"):
        part.as_export_module(own)
    with pytest.raises(ProfileError, match="is for a quantized Qwen3VLForConditionalGeneration"):
        profile().graphs(q.model.visual)
    with pytest.raises(ProfileError, match="graph by graph"):
        q.as_export_module(qwen3_vl.TextProfile(1, 4))
    with pytest.raises(ProfileError, match="graph by graph"):
        q.model.as_export_module(qwen3_vl.TextProfile(1, 4))
    with pytest.raises(ProfileError, match="more than 1 row"):
        q.model.as_export_module(qwen3_vl.WholeProfile(1, 3, (A,)))
    with pytest.raises(ProfileError, match=r"HeadProfile\.seq_len"):
        qwen3_vl.HeadProfile(1, 0)


def test_before_convert() -> None:
    fp, _ = tree()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    for name, (part, own) in profile().graphs(q).items():
        if not name.startswith("token"):
            with pytest.raises(PhaseError):
                part.as_export_module(own)


def test_a_rotary_embedding_that_depends_on_the_length() -> None:
    _, q = quantized("w8a8", num_hidden_layers=1, vision_config={"depth": 1, "deepstack_visual_indexes": [0]})
    q.model.language_model.rotary_emb.float_rotary.rope_type = "dynamic"
    with pytest.raises(ProfileError, match="'dynamic'"):
        profile().manifest(q)
