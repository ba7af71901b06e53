# SPDX-License-Identifier: Apache-2.0
"""generate() over the quantized tree in its float phase: transformers' own loop gives transformers' own tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hf_names import CACHE
from qwen_model_tiny import ROWS, A, B, C, batch, model
from transformers import DynamicCache, StaticCache

import pyquant
from pyquant.wrap import Phase, set_phase

# A right-padded prompt is not asked: transformers warns that the next token would follow padding.
GREEDY = [(case, "left" if len(ROWS[case]) > 1 else "none") for case in ROWS]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    fp = model()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return fp, q


@pytest.mark.parametrize(("case", "side"), GREEDY, ids=[f"{case}-{side}" for case, side in GREEDY])
def test_greedy(pair: tuple[Any, Any], case: str, side: str) -> None:
    given = batch(*ROWS[case], side=side)
    expected, got = (m.generate(**given, max_new_tokens=6, do_sample=False) for m in pair)
    assert torch.equal(got, expected)


WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "top_k": 5, "temperature": 0.8},
    "beams": {"num_beams": 3, "do_sample": False},
    "no_cache": {"use_cache": False, "do_sample": False},
    "several_answers": {"do_sample": True, "num_return_sequences": 2},
    "scores": {"do_sample": False, "output_logits": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_generate(pair: tuple[Any, Any], way: str) -> None:
    given = batch((2, A, 1, B, 3), (3, C, 2), side="left")
    found = []
    for m in pair:
        torch.manual_seed(7)
        found.append(m.generate(**given, max_new_tokens=5, **WAYS[way]))
    expected, got = found
    if way == "scores":
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)
        expected, got = expected.sequences, got.sequences
    assert torch.equal(got, expected)


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
def test_caches(pair: tuple[Any, Any], make: Any) -> None:
    given = batch((2, A, 3), (5, C), side="left")
    found = []
    for m in pair:
        options = {"max_cache_len": 40} if make is StaticCache else {}
        cache = make(config=m.config.text_config, **options)
        found.append(m.generate(**given, max_new_tokens=5, do_sample=False, **{CACHE: cache}))
    assert torch.equal(*found)


def test_generating_from_embeddings(pair: tuple[Any, Any]) -> None:
    fp, _ = pair
    given = batch((6,), (3,), side="left")
    with torch.no_grad():
        embeds = fp.get_input_embeddings()(given.pop("input_ids"))
    expected, got = (m.generate(inputs_embeds=embeds, **given, max_new_tokens=5, do_sample=False) for m in pair)
    assert torch.equal(got, expected)


def test_generating_leaves_nothing_behind(pair: tuple[Any, Any]) -> None:
    fp, q = pair
    given = batch((2, A, 3))
    before, keys = q(**batch((2, B, 2))).logits, set(vars(q))
    config = copy.deepcopy(fp.generation_config)
    q.generate(**given, max_new_tokens=3, do_sample=False)
    assert torch.equal(q(**batch((2, B, 2))).logits, before)
    assert set(vars(q)) == keys
    assert fp.generation_config.to_dict() == config.to_dict()
    assert q.phase is Phase.FLOAT


def test_absent_token_types_do_not_turn_images_into_text(pair: tuple[Any, Any]) -> None:
    given = batch((2, A, 3))
    expected = pair[1].generate(**given, max_new_tokens=5, do_sample=False)
    del given["mm_token_type_ids"]
    assert torch.equal(pair[1].generate(**given, max_new_tokens=5, do_sample=False), expected)
