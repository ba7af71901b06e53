# SPDX-License-Identifier: Apache-2.0
"""Llama's tree in the float phase against transformers: masks, caches, positions, layouts, rotary types, generate."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hf_names import CACHE
from llama_tiny import CHANGING, EOS, LAYOUTS, LONGEST, PAD, ROPES, close, ids, padded, pair, tree
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pyquant.errors import ProfileError
from pyquant.metrics import sqnr_db
from pyquant.models import llama
from pyquant.wrap import Phase

OTHER_FAMILIES = {"proportional"}  # Gemma4's: it turns a part of each head only, and is none of Llama's


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return pair(attention_bias=True)


@torch.no_grad()
def agree(both: tuple[Any, Any], valid: Tensor | None = None, **given: Any) -> None:
    fp, q = both
    ours, theirs = q(**given), fp(**given)
    pick = (lambda t: t) if valid is None else (lambda t: t[valid])
    close(pick(ours.logits), pick(theirs.logits))
    assert type(ours) is type(theirs)


# --- masks and positions ---


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32], ids=["integer", "bool", "float"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(both: tuple[Any, Any], side: str, kind: torch.dtype) -> None:
    given = padded((8, 5, 3), side)
    valid = given["attention_mask"] != 0
    given["attention_mask"] = given["attention_mask"].to(kind)
    agree(both, valid, **given)
    counted = (valid.cumsum(-1) - 1).clamp(min=0)
    agree(both, valid, **given, position_ids=counted)


def test_masks_of_four_dimensions(both: tuple[Any, Any]) -> None:
    keep = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    keep[1, :, 3:, 1] = False
    mask = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    agree(both, input_ids=ids(2, 7), attention_mask=mask)


@torch.no_grad()
def test_packed_positions(both: tuple[Any, Any]) -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]])
    agree(both, input_ids=ids(2, 7), position_ids=positions, use_cache=False)
    alone = both[1](input_ids=ids(2, 7)[:1, 4:], use_cache=False).logits
    close(both[1](input_ids=ids(2, 7), position_ids=positions, use_cache=False).logits[:1, 4:], alone)


# --- other ways to call ---


def test_embeddings_and_places_of_logits(both: tuple[Any, Any]) -> None:
    with torch.no_grad():
        embeds = both[0].get_input_embeddings()(ids(2, 7))
    agree(both, inputs_embeds=embeds)
    for keep in (0, 1, 3, torch.tensor([1, 4])):
        agree(both, input_ids=ids(2, 7), logits_to_keep=keep)


def test_labels_give_transformers_loss_and_gradients(both: tuple[Any, Any]) -> None:
    given = padded((8, 5), "right")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    embeds = both[0].get_input_embeddings()(given["input_ids"]).detach()
    found = []
    for m in both:
        own = embeds.clone().requires_grad_()
        out = m(inputs_embeds=own, attention_mask=given["attention_mask"], labels=labels)
        out.loss.backward()
        found.append((out.loss.detach(), own.grad))
    for ours, theirs in zip(*reversed(found), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@torch.no_grad()
def test_steps_with_a_cache_are_one_long_call(both: tuple[Any, Any], cache_class: Any) -> None:
    fp, _ = both
    given = padded((8, 5), "left")
    whole = fp(**given).logits
    for m in reversed(both):
        cache = cache_class(config=fp.config, **({} if cache_class is DynamicCache else {"max_cache_len": 12}))
        parts = []
        for start, end in ((0, 6), (6, 7), (7, 8)):
            mask = given["attention_mask"][:, :end]
            out = m(input_ids=given["input_ids"][:, start:end], attention_mask=mask, **{CACHE: cache})
            parts.append(out.logits)
        close(torch.cat(parts, dim=1)[given["attention_mask"] != 0], whole[given["attention_mask"] != 0])


# --- layouts and rotary types ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    fp, q = pair(**LAYOUTS[layout])
    agree((fp, q), input_ids=ids(2, 7))
    tied = fp.config.tie_word_embeddings
    assert (q.lm_head.weight is q.model.embed_tokens.weight) == tied
    biases = {name.rsplit(".", 2)[1] for name, _ in q.named_parameters() if name.endswith("bias")}
    expected = {"q_proj", "k_proj", "v_proj", "o_proj"} if fp.config.attention_bias else set()
    assert biases == expected | ({"gate_proj", "up_proj", "down_proj"} if fp.config.mlp_bias else set())


@pytest.mark.parametrize("rope", ROPES)
def test_every_rotary_type(rope: str) -> None:
    """Beyond max_position_embeddings too, where the frequencies of some change; and back."""
    both = pair(rope_parameters=ROPES[rope])
    for length in (7, LONGEST + 9, 7):
        agree(both, input_ids=ids(1, length))


def test_no_rotary_type_is_left_out() -> None:
    assert set(ROPES) == set(ROPE_INIT_FUNCTIONS) - OTHER_FAMILIES | {"default"}


@pytest.mark.parametrize("rope", ROPES)
def test_bundles_of_every_rotary_type(rope: str) -> None:
    """A manifest lists frequencies; those that depend on the length are refused, with the next step."""
    _, q = tree(rope=rope)
    profile = llama.Profile(max_seq_len=12, prefill_lengths=(8,))
    if rope in CHANGING:
        with pytest.raises(ProfileError, match=f"of type '{rope}' change their frequencies .* set rope_type to"):
            profile.manifest(q)
        return
    entry = profile.manifest(q)["rotary"]
    rotary = q.model.rotary_emb.float_rotary
    assert entry["inv_freq"] == rotary.inv_freq.tolist()
    assert entry["attention_scaling"] == rotary.attention_scaling
    assert (entry["attention_scaling"] > 1) == (rope == "yarn")


# --- generate ---

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 7, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3},
    "no_cache": {"do_sample": False, "use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_generate_gives_transformers_tokens(both: tuple[Any, Any], way: str) -> None:
    found = []
    for m in both:
        torch.manual_seed(3)
        found.append(m.generate(**padded((8, 5), "left"), max_new_tokens=6, **WAYS[way]))
    assert torch.equal(*found)


def test_generate_ends_as_transformers_does(both: tuple[Any, Any]) -> None:
    fp, q = both
    given = padded((8, 5), "left")
    free = fp.generate(**given, max_new_tokens=6, do_sample=False)
    options = {"eos_token_id": [EOS, int(free[0, 9])], "pad_token_id": PAD, "max_new_tokens": 6, "do_sample": False}
    expected = fp.generate(**given, **options)
    assert torch.equal(q.generate(**given, **options), expected)
    assert not torch.equal(expected, free)


# --- quantized ---


@pytest.mark.parametrize(("preset", "least"), [("w8a8", 15), ("w8a16", 30), ("w4a16", 8)])
@torch.no_grad()
def test_quantized_is_near(preset: str, least: float) -> None:
    fp, q = tree(preset)
    given = padded((8, 5), "left")
    valid = given["attention_mask"] != 0
    assert q.phase is Phase.QUANTIZED
    assert sqnr_db(fp(**given).logits[valid], q(**given).logits[valid]) > least


def test_forward_names_transformers_arguments(both: tuple[Any, Any]) -> None:
    fp, q = both
    theirs = set(inspect.signature(fp.forward).parameters) - {CACHE}
    assert theirs <= set(inspect.signature(q.forward).parameters)
