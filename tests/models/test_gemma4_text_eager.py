# SPDX-License-Identifier: Apache-2.0
"""Gemma4's language model in the float phase against transformers: forms, masks, caches, per-layer inputs, generate."""

from __future__ import annotations

import functools
from typing import Any

import gemma4_text_tiny as tiny
import pytest
import torch
from gemma4_text_tiny import FORMS, VOCAB, WINDOW, ids
from hf_names import CACHE
from torch import Tensor
from transformers import DynamicCache, StaticCache

import pyquant
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, set_phase
from pyquant.wrap.hf import cache_of

LENGTHS = {"shorter": WINDOW - 2, "equal": WINDOW, "longer": 3 * WINDOW}
TOLERANCE = 1e-5  # of the largest logit


def floating(fp: Any) -> Any:
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return q


@functools.cache
def pair(form: str = "e2b", **changes: Any) -> tuple[Any, Any]:
    fp = tiny.causal_lm(form, **changes)
    return fp, floating(fp)


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@torch.no_grad()
def agree(both: tuple[Any, Any], valid: Tensor | None = None, **given: Any) -> Any:
    fp, q = both
    expected, got = fp(**given), q(**given)
    pick = (lambda t: t) if valid is None else (lambda t: t[valid])
    close(pick(got.logits), pick(expected.logits))
    assert type(got) is type(expected)
    return got


def padded(lengths: tuple[int, ...], side: str, extra: int = 0) -> dict[str, Tensor]:
    """Rows of these lengths, padded on one side to the longest and `extra` more."""
    width = max(lengths) + extra
    input_ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        input_ids[row, place] = ids(1, length, seed=row)[0]
        mask[row, place] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


# --- forms and lengths ---


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, length: str) -> None:
    agree(pair(form), input_ids=ids(2, LENGTHS[length]))


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 0},
        {"layer_types": ["full_attention"] * 3, "num_hidden_layers": 3, "num_kv_shared_layers": 1},
        {"rms_norm_eps": 1e-2, "hidden_activation": "silu", "vocab_size_per_layer_input": VOCAB - 3},
    ],
    ids=["untied", "no_shared_keys", "full_layers_alone", "other_numbers"],
)
def test_other_configs(changes: dict[str, Any]) -> None:
    fp = tiny.causal_lm(**changes)
    input_ids = ids(2, 9).clamp(max=VOCAB - 4)
    agree((fp, floating(fp)), input_ids=input_ids)


def test_models_of_sdpa_and_the_text_model_alone() -> None:
    fp = tiny.causal_lm()
    fp.config._attn_implementation = "sdpa"
    both = fp, floating(fp)
    agree(both, input_ids=ids(2, 9))
    given = padded((9, 4), "left")
    agree(both, given["attention_mask"].bool(), **given)
    text = tiny.text_model()
    with torch.no_grad():
        out = floating(text)(input_ids=ids(2, 9))
        close(out.last_hidden_state, text(input_ids=ids(2, 9)).last_hidden_state)
    assert isinstance(cache_of(out), DynamicCache)


# --- padding, masks, positions ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("form", ["e2b", "k_eq_v", "all"])
def test_each_row_of_a_padded_batch(form: str, side: str, extra: int) -> None:
    """As transformers; and at real tokens with positions counted there, as the row alone."""
    both, lengths = pair(form), (2 * WINDOW, WINDOW, 1, WINDOW + 2)
    given = padded(lengths, side, extra)
    valid = given["attention_mask"].bool()
    agree(both, valid, **given)
    given["position_ids"] = (valid.cumsum(-1) - 1).clamp(min=0)
    got = agree(both, valid, **given).logits
    for row in range(len(lengths)):
        with torch.no_grad():
            close(got[row, valid[row]], both[1](input_ids=given["input_ids"][row : row + 1, valid[row]]).logits[0])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int32])
def test_two_dimensional_masks_of_any_type(kind: torch.dtype) -> None:
    given = padded((9, 4), "left")
    valid = given["attention_mask"].bool()
    agree(pair(), valid, **given | {"attention_mask": given["attention_mask"].to(kind)})


def test_masks_of_four_dimensions_and_by_layer_type() -> None:
    """One 4-D mask is that of every layer; HF's mapping has one for each type, or None for no mask."""
    keep = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    keep[1, :, 3:, 1] = False
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(keep.shape).masked_fill(~keep, lowest)
    agree(pair(), input_ids=ids(2, 7), attention_mask=mask)
    narrow = mask.masked_fill(~torch.ones(7, 7, dtype=torch.bool).triu(-2), lowest)
    agree(pair(), input_ids=ids(2, 7), attention_mask={"full_attention": mask, "sliding_attention": narrow})
    agree(pair(), input_ids=ids(2, 7), attention_mask={"full_attention": None, "sliding_attention": narrow})


@torch.no_grad()
def test_positions_and_packed_sequences() -> None:
    both = pair()
    agree(both, input_ids=ids(2, 8), position_ids=torch.arange(3, 11)[None].expand(2, -1))
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5]])
    got = agree(both, input_ids=ids(2, 8), position_ids=packed, use_cache=False)
    close(got.logits[:1, 4:], both[1](input_ids=ids(2, 8)[:1, 4:], use_cache=False).logits)


# --- other ways to call ---


@pytest.mark.parametrize("form", ["e2b", "no_ple"])
def test_embeddings_and_per_layer_inputs_instead_of_ids(form: str) -> None:
    """Embeddings alone are looked up in the table, as transformers does."""
    both = pair(form)
    input_ids = ids(2, 9)
    with torch.no_grad():
        embeds = both[0].get_input_embeddings()(input_ids)
    got = agree(both, inputs_embeds=embeds)
    assert torch.equal(got.logits, both[1](input_ids=input_ids).logits)
    if form == "e2b":
        with torch.no_grad():
            rows = both[0].model.get_per_layer_inputs(input_ids, None)
        assert torch.equal(agree(both, inputs_embeds=embeds, per_layer_inputs=rows).logits, got.logits)
        agree(both, inputs_embeds=embeds + 0.5, per_layer_inputs=rows - 0.25)


def test_embeddings_that_differ_in_the_last_channel_alone() -> None:
    fp = tiny.causal_lm()
    table = fp.get_input_embeddings().weight
    with torch.no_grad():
        table[:, :-1] = table[0, :-1]
        embeds = fp.get_input_embeddings()(ids(2, 9))
    both = fp, floating(fp)
    got = agree(both, inputs_embeds=embeds)
    assert torch.equal(got.logits, both[1](input_ids=ids(2, 9)).logits)


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([1, 4])], ids=["all", "last", "three", "places"])
@pytest.mark.parametrize("form", ["e2b", "no_ple"])
def test_places_of_logits(form: str, keep: Any) -> None:
    both, input_ids = pair(form), ids(2, 9)
    got = agree(both, input_ids=input_ids, logits_to_keep=keep).logits
    given = padded((9, 4), "left")
    with torch.no_grad():
        whole = both[1](input_ids=input_ids).logits
        fp, q = (m(**given, logits_to_keep=keep).logits for m in both)
    close(got, whole[:, keep] if isinstance(keep, Tensor) else whole[:, -keep:])
    close(*((q[0], fp[0]) if isinstance(keep, Tensor) else (q[:, -1], fp[:, -1])))


def test_labels_give_transformers_loss_and_gradients() -> None:
    both = pair()
    given = padded((9, 5), "right")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    embeds = both[0].get_input_embeddings()(given["input_ids"]).detach()
    with torch.no_grad():
        rows = both[0].model.get_per_layer_inputs(given["input_ids"], None)
    found = []
    for m in both:
        own = embeds.clone().requires_grad_()
        out = m(inputs_embeds=own, per_layer_inputs=rows, attention_mask=given["attention_mask"], labels=labels)
        out.loss.backward()
        found.append((out.loss.detach(), own.grad))
    for ours, theirs in zip(*reversed(found), strict=True):
        close(ours, theirs)


def test_outputs_as_a_tuple() -> None:
    with torch.no_grad():
        expected, got = (m(input_ids=ids(1, 4), return_dict=False) for m in pair())
    assert isinstance(got, tuple)
    close(got[0], expected[0])


# --- cache ---

STEPS = {"token_by_token": [6] + [7 + i for i in range(6)], "chunks": [4, 9, 12], "past_the_window_at_once": [11, 12]}


def new_cache(kind: str, fp: Any, room: int) -> Any:
    if kind == "static":
        return StaticCache(config=fp.config, max_cache_len=room)
    return DynamicCache(config=fp.config) if kind == "hybrid" else DynamicCache()


def skip_without_layers(cache: Any) -> None:
    """5.5.4 counts the layers that do not share keys as `layer_types[:-0]`: none."""
    if not cache.layers:
        pytest.skip("this release makes a cache without layers where none shares keys")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["hybrid", "dynamic", "static"])
@pytest.mark.parametrize("form", ["e2b", "k_eq_v"])
@torch.no_grad()
def test_steps_with_a_cache_are_one_long_call(form: str, kind: str, steps: str) -> None:
    """hybrid: sliding layers keep a window; dynamic: all keys. One row is padded, others are not."""
    fp, q = pair(form)
    given = padded((12, 9), "left")
    valid = given["attention_mask"].bool()
    whole = fp(**given, use_cache=False).logits[valid]
    if kind != "dynamic":
        skip_without_layers(new_cache(kind, fp, 16))
    for m in (q, fp) if kind == "static" else (q,):
        cache, start, parts = new_cache(kind, fp, 16), 0, []
        for end in STEPS[steps]:
            out = m(
                input_ids=given["input_ids"][:, start:end],
                attention_mask=given["attention_mask"][:, :end],
                **{CACHE: cache},
            )
            parts.append(out.logits)
            start = end
        close(torch.cat(parts, dim=1)[valid], whole)
    assert cache_of(out) is cache
    owners = fp.config.num_hidden_layers - fp.config.num_kv_shared_layers
    if kind == "hybrid":
        kept = [layer.keys.shape[2] for layer in cache.layers[:owners]]
        assert kept == [WINDOW - 1 if t == "sliding_attention" else 12 for t in fp.config.layer_types[:owners]]


# --- generate ---

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 7, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "no_cache": {"do_sample": False, "use_cache": False},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["e2b", "k_eq_v"])
def test_generate_gives_transformers_tokens(form: str, way: str) -> None:
    """Past the window twice; one row of the batch is padded."""
    if way == "static":
        skip_without_layers(new_cache("static", pair(form)[0], 16))
    found = []
    for m in pair(form):
        torch.manual_seed(3)
        given = padded((WINDOW + 1, WINDOW - 2), "left")
        found.append(
            m.generate(**given, max_new_tokens=2 * WINDOW, eos_token_id=None, disable_compile=True, **WAYS[way])
        )
    assert torch.equal(*found)
    assert found[0].shape[1] == 3 * WINDOW + 1


@pytest.mark.parametrize("length", LENGTHS)
def test_generate_from_prompts_around_the_window(length: str) -> None:
    given = {"input_ids": ids(1, LENGTHS[length]), "max_new_tokens": WINDOW + 1, "eos_token_id": None}
    expected, got = (m.generate(**given, do_sample=False) for m in pair())
    assert torch.equal(got, expected)


# --- quantized ---


@pytest.mark.parametrize(("preset", "least"), [("w8a8", 12), ("w8a16", 30), ("w4a16", 5)])
@torch.no_grad()
def test_quantized_is_near(preset: str, least: float) -> None:
    fp = tiny.causal_lm()
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    given = padded((12, 7), "left")
    pyquant.calibrate(q, [given], progress=False)
    pyquant.convert(q)
    valid = given["attention_mask"].bool()
    assert sqnr_db(fp(**given).logits[valid], q(**given).logits[valid]) > least
