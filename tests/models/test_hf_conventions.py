# SPDX-License-Identifier: Apache-2.0
"""How transformers is called, on each release: names of the cache, output classes, what a config asks of a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from hf_names import CACHE
from qwen_model_tiny import A, B, batch, model
from transformers import DynamicCache

import pyquant
from pyquant import models
from pyquant.errors import InputError
from pyquant.wrap import Phase, hf, set_phase
from pyquant.wrap.hf_facts import CACHE_NAMES

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # older releases add up the norms of Gemma4 in another order
W8A8 = pyquant.Policy.preset("w8a8")
TOKEN = torch.tensor([[5]])


def pair_of(fp: Any) -> tuple[Any, Any]:
    q = pyquant.prepare(fp, W8A8)
    set_phase(q, Phase.FLOAT)
    return fp, q


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any]:
    return pair_of(model())


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    return pair_of(models.by_name("gemma4").example.tiny_model())


@contextmanager
def config(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner.config, name, None) for name in values}
    for name, value in values.items():
        setattr(owner.config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner.config, name, value)


# --- the cache ---


@pytest.mark.parametrize("name", CACHE_NAMES)
@torch.no_grad()
def test_each_name_of_the_cache_reaches_the_layers(qwen: tuple[Any, Any], name: str) -> None:
    fp, q = qwen
    given = batch((2, A, 3))
    caches = [DynamicCache(config=m.config.text_config) for m in qwen]
    prompt = q(**given, **{name: caches[1]})
    fp(**given, **{CACHE: caches[0]})
    assert hf.cache_of(prompt) is caches[1]
    length = given["input_ids"].shape[1]
    assert caches[1].get_seq_length() == length
    expected, got = fp(input_ids=TOKEN, **{CACHE: caches[0]}), q(input_ids=TOKEN, **{name: caches[1]})
    torch.testing.assert_close(got.logits, expected.logits, **TOLERANCE)
    assert caches[1].get_seq_length() == length + 1


def test_two_names_of_one_cache_are_refused(qwen: tuple[Any, Any]) -> None:
    cache = DynamicCache(config=qwen[1].config.text_config)
    with pytest.raises(InputError, match="cache and past_key_values are two names of one argument"):
        qwen[1](input_ids=TOKEN, cache=cache, past_key_values=cache)


@torch.no_grad()
def test_assisted_generation(qwen: tuple[Any, Any]) -> None:
    given = batch((2, A, 3))
    expected, got = (m.generate(**given, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2) for m in qwen)
    assert torch.equal(got, expected)


class OffsetOfALayer(DynamicCache):
    """5.14.0: get_query_offset has no default layer."""

    def get_query_offset(self, layer_idx: int) -> Any:
        return self.get_seq_length(layer_idx)


@torch.no_grad()
def test_a_cache_that_wants_to_know_the_layer(qwen: tuple[Any, Any]) -> None:
    logits = []
    for make in (DynamicCache, OffsetOfALayer):
        cache = make(config=qwen[1].config.text_config)
        qwen[1](**batch((2, A, 3)), cache=cache)
        logits.append(qwen[1](input_ids=TOKEN, cache=cache).logits)
    assert torch.equal(*logits)


@torch.no_grad()
def test_llama_by_each_name_and_by_generate() -> None:
    fp, q = pair_of(models.by_name("llama").example.tiny_model())
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = fp(input_ids=torch.cat([ids, TOKEN], dim=1))
    for name in CACHE_NAMES:
        cache = DynamicCache(config=q.config)
        q(input_ids=ids, **{name: cache})
        got = q(input_ids=TOKEN, **{name: cache})
        assert type(got) is type(expected)
        assert cache.get_seq_length() == 5
        torch.testing.assert_close(got.logits[:, -1], expected.logits[:, -1], **TOLERANCE)
    options = {"input_ids": ids, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(q.generate(**options), fp.generate(**options))


# --- outputs ---


@pytest.mark.parametrize("part", ["whole", "model", "text", "vision"])
@torch.no_grad()
def test_outputs_are_of_the_class_and_with_the_fields_of_transformers(qwen: tuple[Any, Any], part: str) -> None:
    given = batch((2, A, 3, B, 2))
    calls = {
        "whole": lambda m: m(**given),
        "model": lambda m: m.model(**given),
        "text": lambda m: m.model.language_model(input_ids=TOKEN),
        "vision": lambda m: m.model.visual(given["pixel_values"], grid_thw=given["image_grid_thw"]),
    }
    expected, got = (calls[part](m) for m in qwen)
    assert type(got) is type(expected)
    assert list(got.keys()) == list(expected.keys())
    for field in fields(expected):
        theirs, ours = getattr(expected, field.name), getattr(got, field.name)
        assert type(ours) is type(theirs), field.name
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.no_grad()
def test_the_vision_tower_of_gemma4_gives_the_class_of_transformers(gemma: tuple[Any, Any]) -> None:
    given = models.by_name("gemma4").example.example_inputs(gemma[0])
    expected, got = (m(**given) for m in gemma)
    assert type(got) is type(expected)
    assert list(got.keys()) == list(expected.keys())


# --- what a config asks for ---


def parts(qwen: tuple[Any, Any], gemma: tuple[Any, Any]) -> dict[str, Any]:
    """name -> (float module, wrapper, a call): the modules that read their config in every forward."""
    fp, q = qwen
    given = batch((2, A, 3))
    pixels = models.by_name("gemma4").example.example_inputs(gemma[0])
    return {
        "text": (fp.model.language_model, q.model.language_model, lambda m: m(input_ids=TOKEN)),
        "vision": (
            fp.model.visual,
            q.model.visual,
            lambda m: m(given["pixel_values"], grid_thw=given["image_grid_thw"]),
        ),
        "gemma4": (*gemma, lambda m: m(**pixels)),
    }


PARTS = ("text", "vision", "gemma4")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@torch.no_grad()
def test_a_config_that_asks_for_more_output_is_refused(
    qwen: tuple[Any, Any], gemma: tuple[Any, Any], part: str, name: str
) -> None:
    fp, q, call = parts(qwen, gemma)[part]
    recorded = "hidden_states" if name == "output_hidden_states" else "attentions"
    with config(fp, **{name: True}):
        assert getattr(call(fp), recorded) is not None  # what would be missing without a word
        with pytest.raises(
            InputError, match=rf"Config\.{name} is True, which quantized wrappers do not support: set it"
        ):
            call(q)
        plain = call(lambda *args, **kwargs: q(*args, **kwargs, **{name: False}))
    assert getattr(plain, recorded) is None
    call(q)


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_return_dict_false_in_the_config(qwen: tuple[Any, Any], gemma: tuple[Any, Any], part: str) -> None:
    fp, q, call = parts(qwen, gemma)[part]
    with config(fp, return_dict=False):
        expected, got = call(fp), call(q)
        named = call(lambda *args, **kwargs: q(*args, **kwargs, return_dict=True))
    assert type(expected) is tuple
    assert type(got) is tuple
    assert len(got) == len(expected)
    torch.testing.assert_close(got[0], expected[0], **TOLERANCE)
    assert torch.equal(named.last_hidden_state, got[0])


@torch.no_grad()
def test_return_dict_false_in_every_config_of_a_whole_model(qwen: tuple[Any, Any]) -> None:
    fp, q = qwen
    given = batch((2, A, 3))
    expected = q(**given)
    with (
        config(fp, return_dict=False),
        config(fp.model.language_model, return_dict=False),
        config(fp.model.visual, return_dict=False),
    ):
        got = q(**given)  # transformers' own raises AttributeError or TypeError here
        tokens = q.generate(**given, max_new_tokens=3, do_sample=False)
    assert type(got) is tuple
    torch.testing.assert_close(got[0], expected.logits)
    assert torch.equal(tokens, q.generate(**given, max_new_tokens=3, do_sample=False))


@torch.no_grad()
def test_use_cache_false_in_the_config(qwen: tuple[Any, Any]) -> None:
    fp, q = qwen
    with config(fp.model.language_model, use_cache=False):
        expected, got = (m(input_ids=torch.tensor([[3, 4]])) for m in (fp, q))
        assert hf.cache_of(expected) is None
        assert hf.cache_of(got) is None
        given = {"input_ids": torch.tensor([[3, 4]]), "max_new_tokens": 3, "do_sample": False}
        assert torch.equal(fp.generate(**given), q.generate(**given))
    assert hf.cache_of(q(input_ids=TOKEN)) is not None
