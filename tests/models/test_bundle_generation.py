# SPDX-License-Identifier: Apache-2.0
"""generate() over a bundle's graphs does what q.generate does with the model's generation config and with keywords."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from qwen_bundle_tiny import Eager, profile, tree
from qwen_model_tiny import EOS, PAD, VOCAB, A, B, C, batch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.logits_process import LogitsProcessor

from pyquant.decoder.bundle import BundleParts
from pyquant.errors import InputError
from pyquant.models.qwen3_vl.host import host as make_host

NEW = 7
ROWS = ((1, A, 2), (5,), (C, 3, B))


@cache
def run(rows: int = 3) -> Eager:
    return Eager(tree()[1], profile(batch_size=rows, max_seq_len=40))


@cache
def prompts() -> dict[str, Any]:
    return batch(*ROWS, side="left")


def free() -> Tensor:
    """What the rows say when nobody ends them."""
    return tree()[1].generate(**prompts(), max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, -NEW:]


def both(seed: int | None = None, given: dict[str, Any] | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """(tokens of the files' graphs, tokens of the tree) with the same options."""
    given = prompts() if given is None else given
    options = {"max_new_tokens": NEW, **options}
    found = []
    for model in (lambda **kwargs: run().host().generate(run(), **kwargs), tree()[1].generate):
        if seed is not None:
            torch.manual_seed(seed)
        found.append(model(**given, **options))
    return found[0], found[1]


BIAS = {(3,): 2.0, (5, 7): -1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.8},
    "ngrams": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[3, 4], *([token] for token in range(5, 40))]},
    "suppressed": {"suppress_tokens": list(range(30)), "begin_suppress_tokens": [40, 41, 42]},
    "least": {"min_new_tokens": 4, "eos_token_id": list(range(0, VOCAB, 3))},
    "least_length": {"min_length": 14, "eos_token_id": list(range(0, VOCAB, 3))},
    "forced": {"forced_eos_token_id": EOS},
    "bias": {"sequence_bias": BIAS},
    "decay": {"exponential_decay_length_penalty": (2, 1.5)},
    "length": {"max_new_tokens": None, "max_length": 14},
    "no_end": {"eos_token_id": None},
    "other_padding": {"eos_token_id": list(range(0, VOCAB, 2)), "pad_token_id": 11},
    "several_ends": {"eos_token_id": list(range(0, VOCAB, 4))},
    "no_cache": {"use_cache": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_greedy(name: str) -> None:
    tokens, expected = both(**OPTIONS[name])
    assert torch.equal(tokens, expected)
    if name not in ("no_end", "no_cache", "decay"):  # the option does something
        plain, _ = both()
        assert not torch.equal(tokens, plain)


SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"top_k": 4, "temperature": 0.7},
    "top_p": {"top_p": 0.6, "top_k": 0},
    "min_p": {"min_p": 0.2, "temperature": 1.5},
    "typical": {"typical_p": 0.5},
    "cutoffs": {"epsilon_cutoff": 0.02, "eta_cutoff": 0.02},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "renormalize_logits": True},
    "ends": {"eos_token_id": list(range(0, VOCAB, 5))},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_with_one_seed(name: str) -> None:
    options = {"do_sample": True, **SAMPLING[name]}
    for seed in (3, 4):
        tokens, expected = both(seed, **options)
        assert torch.equal(tokens, expected)
    assert not torch.equal(tokens, both(**SAMPLING[name])[0])
    torch.manual_seed(9)
    state = torch.get_rng_state()
    alone = run().host().generate(run(), **prompts(), max_new_tokens=NEW, seed=4, **options)
    assert torch.equal(alone, tokens)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_models_own_config_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has what q.generate reads; keywords and a given config override it."""
    _, q = tree()
    own = GenerationConfig(
        eos_token_id=[EOS, *free()[:, 3].tolist()],
        pad_token_id=PAD,
        do_sample=True,
        temperature=0.9,
        top_k=12,
        top_p=0.95,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        max_new_tokens=6,
        suppress_tokens=[2],
        sequence_bias=BIAS,
    )
    monkeypatch.setattr(q, "generation_config", own)
    made = Eager(q, profile(batch_size=3, max_seq_len=40))
    made.manifest = json.loads(json.dumps(made.manifest))  # as it is in the file
    entries = made.manifest["generation"]
    assert entries["eos_token_id"] == own.eos_token_id
    assert (entries["temperature"], entries["top_k"], entries["do_sample"], entries["max_new_tokens"]) == (
        0.9,
        12,
        True,
        6,
    )
    assert not {"transformers_version", "_from_model_config"} & set(entries)
    other = GenerationConfig(do_sample=True, top_k=3, max_new_tokens=4)
    for options in (
        {},
        {"do_sample": False},
        {"do_sample": False, "eos_token_id": None},
        {"temperature": 2.0, "top_k": 0},
        {"generation_config": other},
        {"generation_config": other, "repetition_penalty": 3.0},
        {"max_length": 12, "max_new_tokens": None},
    ):
        torch.manual_seed(5)
        expected = q.generate(**prompts(), **options)
        torch.manual_seed(5)
        assert torch.equal(made.host().generate(made, **prompts(), **options), expected), options
    assert other == GenerationConfig(do_sample=True, top_k=3, max_new_tokens=4)


def test_a_manifest_of_an_older_release() -> None:
    """It names the end and padding alone: greedy, 20 tokens where they fit."""
    old = {**run().manifest, "generation": {"eos_token_id": EOS, "pad_token_id": PAD}}
    tokens = make_host(old).generate(run(), **prompts())
    room = 40 - int(prompts()["attention_mask"].sum(1).max()) + 1
    expected = tree()[1].generate(**prompts(), max_new_tokens=min(20, room))
    assert torch.equal(tokens, expected)
    without = {**run().manifest, "generation": {}}
    assert torch.equal(make_host(without).generate(run(), **prompts(), max_new_tokens=NEW)[:, -NEW:], free())


def test_a_config_without_a_length_ends_where_the_cache_does() -> None:
    long = {**run().manifest, "generation": {"eos_token_id": -1, "pad_token_id": PAD, "max_length": 4096}}
    width, longest = prompts()["input_ids"].shape[1], int(prompts()["attention_mask"].sum(1).max())
    assert make_host(long).generate(run(), **prompts()).shape[1] == width + 40 - longest + 1
    with pytest.raises(InputError, match="new tokens fit"):
        make_host(long).generate(run(), **prompts(), max_length=4096)
    with pytest.raises(InputError, match="new tokens fit"):
        make_host(long).generate(run(), **prompts(), generation_config=GenerationConfig(max_new_tokens=90))


# --- padding ---


def test_padding_without_a_mask_is_inferred_as_transformers_does() -> None:
    given = {name: value for name, value in batch((5,), (3,), (7,), side="left").items() if name != "attention_mask"}
    tokens, expected = both(given=given)
    assert torch.equal(tokens, expected)
    tokens, expected = both(given=given, pad_token_id=None, eos_token_id=PAD)  # then padding is real
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ["repetition", "ngrams", "least_length"])
def test_padding_on_the_right_is_padding_on_the_left(name: str) -> None:
    right = batch(*ROWS, side="right")
    tokens = run().host().generate(run(), **right, max_new_tokens=NEW, **OPTIONS[name])
    assert torch.equal(tokens[:, :-NEW], right["input_ids"])
    assert torch.equal(tokens[:, -NEW:], both(**OPTIONS[name])[1][:, -NEW:])


# --- what a caller passes ---


def tokenizer() -> PreTrainedTokenizerFast:
    """Every id is a word with a full stop; the first is the word that transformers probes with."""
    words = ["abcdef", *(f"w{number}." for number in range(1, VOCAB))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="abcdef"))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_stop_strings() -> None:
    row = free()[0].tolist()
    stop = f"w{row[2]}.w{row[3]}."
    tokens, expected = both(stop_strings=[stop], tokenizer=tokenizer())
    assert torch.equal(tokens, expected)
    assert tokens[0, -NEW:].tolist() == [*row[:4], *[PAD] * (NEW - 4)]
    with pytest.raises(InputError, match=r"transformers refuses these settings .*tokenizer"):
        run().host().generate(run(), **prompts(), stop_strings=[stop])


class Streamer:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value.clone())

    def end(self) -> None:
        self.seen.append("end")


def test_a_streamer_gets_prompt_tokens_and_the_end_in_order() -> None:
    ends = {"eos_token_id": [EOS, int(free()[0, 2])]}
    mine, theirs = Streamer(), Streamer()
    tokens = run().host().generate(run(), **prompts(), max_new_tokens=NEW, streamer=mine, **ends)
    tree()[1].generate(**prompts(), max_new_tokens=NEW, streamer=theirs, **ends)
    assert len(mine.seen) == len(theirs.seen)
    assert mine.seen[-1] == theirs.seen[-1] == "end"
    assert all(map(torch.equal, mine.seen[:-1], theirs.seen[:-1]))
    assert torch.equal(torch.cat([mine.seen[0], torch.stack(mine.seen[1:-1], dim=1)], dim=1), tokens)


def test_transformers_own_streamer(capsys: pytest.CaptureFixture[str]) -> None:
    one, given = run(1), batch((5,))
    streamer = TextStreamer(tokenizer(), skip_prompt=True)  # type: ignore[no-untyped-call]
    tokens = one.host().generate(one, **given, max_new_tokens=4, streamer=streamer)
    assert capsys.readouterr().out == tokenizer().decode(tokens[0, 5:]) + "\n"
    with pytest.raises(InputError, match="TextStreamer only supports batch size 1"):
        run().host().generate(run(), **prompts(), streamer=streamer)


class Only(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 0, -torch.inf)


class After(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= prompts()["input_ids"].shape[1] + 3)


def test_processors_and_criteria_of_the_caller() -> None:
    options = {
        "logits_processor": LogitsProcessorList([Only()]),
        "stopping_criteria": StoppingCriteriaList([After()]),
        "prefix_allowed_tokens_fn": lambda row, ids: list(range(row, VOCAB, 3)),
    }
    tokens, expected = both(**options)
    assert torch.equal(tokens, expected)
    assert tokens.shape[1] == prompts()["input_ids"].shape[1] + 3
    assert bool((tokens[:, -3:] % 2 == 1).all())


def test_a_sampler_chooses_after_the_penalties() -> None:
    seen: list[Tensor] = []

    def least(scores: Tensor, tokens: Tensor) -> Tensor:
        seen.append(scores)
        return scores.masked_fill(scores.isinf(), torch.inf).argmin(dim=-1)

    options = {"max_new_tokens": 3, "suppress_tokens": list(range(30)), "eos_token_id": None}
    tokens = run().host().generate(run(), **prompts(), sampler=least, **options)
    assert bool((tokens[:, -3:] >= 30).all())
    assert all(bool(scores[:, :30].isinf().all()) for scores in seen)
    with pytest.raises(InputError, match="do_sample=True beside sampler"):
        run().host().generate(run(), **prompts(), sampler=least, do_sample=True)


# --- what is refused ---

REFUSED: dict[str, dict[str, Any]] = {
    "num_beams=4": {"num_beams": 4},
    "num_return_sequences=2": {"num_return_sequences": 2, "do_sample": True},
    "penalty_alpha=0.6": {"penalty_alpha": 0.6, "top_k": 4},
    "assistant_model=a object": {"assistant_model": object()},
    "prompt_lookup_num_tokens=3": {"prompt_lookup_num_tokens": 3},
    "guidance_scale=1.5": {"guidance_scale": 1.5},
    "return_dict_in_generate=True": {"return_dict_in_generate": True},
    "output_scores=True": {"output_scores": True},
    "cache_implementation='static'": {"cache_implementation": "static"},
    "custom_generate='a/b'": {"custom_generate": "a/b"},
    "dola_layers='high'": {"dola_layers": "high"},
    r"max_new_token is no argument of it \(is it max_new_tokens\?\)": {"max_new_token": 3},
    "past_key_values is no argument": {"past_key_values": None},
    "num_beams=4.*; top_q is no argument|top_q is no argument.*; num_beams=4": {"num_beams": 4, "top_q": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_by_name(message: str) -> None:
    with pytest.raises(InputError, match=rf"cannot do this: .*(?:{message}).*q\.generate"):
        run().host().generate(run(), **prompts(), **REFUSED[message])


def test_refused_of_the_models_config_until_a_caller_says_otherwise() -> None:
    beams = make_host({**run().manifest, "generation": {**run().manifest["generation"], "num_beams": 3}})
    with pytest.raises(InputError, match=r"num_beams=3, from the model's generation config \(pass num_beams=1\)"):
        beams.generate(run(), **prompts())
    for options in ({"num_beams": 1}, {"generation_config": GenerationConfig(num_beams=1)}):
        tokens = beams.generate(run(), **prompts(), max_new_tokens=NEW, **options)
        assert torch.equal(tokens[:, -NEW:], both()[0][:, -NEW:])


def test_settings_that_transformers_refuses() -> None:
    with pytest.raises(InputError, match=r"transformers refuses these settings .*temperature"):
        run().host().generate(run(), **prompts(), do_sample=True, temperature=-1.0)
    with pytest.raises(InputError, match=r"generation_config is a transformers\.GenerationConfig, got a dict"):
        run().host().generate(run(), **prompts(), generation_config={"top_k": 3})


def test_a_fault_of_a_graph_is_not_one_of_the_settings() -> None:
    def broken(name: str, inputs: Any) -> dict[str, Tensor]:
        if name == "lm_head":
            raise ValueError("a fault of the runtime")
        return run()(name, inputs)

    with pytest.raises(ValueError, match=r"^a fault of the runtime$"):
        run().host().generate(broken, **prompts())


def test_a_model_without_a_config_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, q = tree()
    monkeypatch.setattr(q, "generation_config", None)
    parts: BundleParts = profile().PARTS(profile(token_embedding="dynamic"), q)
    assert parts.manifest()["generation"] == {}
