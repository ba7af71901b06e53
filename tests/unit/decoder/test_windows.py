# SPDX-License-Identifier: Apache-2.0
"""Layers with a window in static graphs: their caches are rings, their prefill may go in bands, append goes on behind.

The toy has a window of 4, so its rings have 3 slots; its tree, in transformers' own loop, is what all is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import unequal_toy
from torch import Tensor
from transformers import DynamicCache, StaticCache
from unequal_toy import EOS, PAD, WINDOW, ToyProfile, converted, ids, model, padded

import pyquant
from pyquant.decoder.cache import CacheState
from pyquant.decoder.graphs import TextProfile
from pyquant.decoder.host import Host
from pyquant.decoder.kind import LayerKind
from pyquant.decoder.turn import Past
from pyquant.errors import InputError, ProfileError
from pyquant.metrics import peir
from pyquant.verify import Session, compare
from pyquant.verify.runtimes import onert
from pyquant.verify.tolerance import op_faults
from pyquant.wrap import Phase, phase
from pyquant.wrap.bands import block_length
from tests.models.eager_bundle import Eager


@cache
def tree() -> tuple[Any, Any]:
    """(float model, converted tree): changed by no test."""
    fp = model()
    return fp, converted(fp, [padded((11, 6, 8)), {"input_ids": ids(1, 30, seed=9)}])


class Graphs(Eager):
    """The graphs of a profile, and a host made of its manifest as a file has it."""

    def __init__(self, profile: ToyProfile, q: Any = None) -> None:
        super().__init__(tree()[1] if q is None else q, profile)
        self.host = Host(json.loads(json.dumps(self.manifest)))

    def generate(self, **given: Any) -> Tensor:
        return self.host.generate(self, **given)


LAYOUTS: dict[str, dict[str, Any]] = {
    "stack": {},
    "per_layer": {"layers": "per_layer"},
    "per_head": {"attention": "per_head", "token_embedding": "fixed"},
    "banded": {"sliding": "banded"},
    "banded_layers": {"sliding": "banded", "layers": "per_layer", "attention": "per_head"},
}


@cache
def graphs(layout: str, rows: int = 1) -> Graphs:
    profile = ToyProfile(30, prefill_lengths=(6, 12), append_lengths=(2, 5), batch_size=rows, **LAYOUTS[layout])
    return Graphs(profile)


# --- the ring ---


def test_a_slot_holds_the_last_place_that_is_its_own() -> None:
    """Written out: tokens one by one into 3 slots, for rows of unequal length, past two wraps."""
    layers = {0: (torch.zeros(2, 1, 3, 1), torch.zeros(2, 1, 3, 1))}
    state = CacheState(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), layers)
    expected, lengths = [[-1] * 3, [-1] * 3], [0, 0]
    for counts in ((2, 0), (1, 1), (5, 2), (0, 3), (1, 1), (3, 4)):
        new = torch.full((2, 1, 6, 1), -7.0)
        for row, count in enumerate(counts):
            for k in range(count):
                expected[row][lengths[row] % 3] = lengths[row]
                new[row, 0, k] = lengths[row]
                lengths[row] += 1
        state.add({0: (new, -new)}, torch.tensor(counts))
        places = state.places(3)
        assert places.clamp(min=-1).tolist() == expected
        filled = places >= 0
        for sign, tensor in zip((1, -1), state.layers[0], strict=True):
            assert torch.equal((sign * tensor[:, 0, :, 0]).long()[filled], places[filled])


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 11])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_around_the_window_and_decode_past_two_wraps(layout: str, length: int) -> None:
    """Shorter than the window, as long, longer; eleven more tokens go round three slots three times."""
    given = {"input_ids": ids(1, length, seed=length), "max_new_tokens": 11, "eos_token_id": None}
    expected = tree()[1].generate(**given, do_sample=False)
    assert torch.equal(graphs(layout).generate(**given), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [(11, 2), (3, 9)])
def test_rows_of_unequal_length(layout: str, lengths: tuple[int, ...]) -> None:
    given = {**padded(lengths), "max_new_tokens": 10, "eos_token_id": None}
    expected = tree()[1].generate(**given, do_sample=False)
    assert torch.equal(graphs(layout, 2).generate(**given), expected)


def test_logits_are_those_of_one_long_call() -> None:
    """Every step, in the float phase to rounding, quantized far closer than quantization is to the float model."""
    fp, q = tree()
    run, seen = graphs("stack"), list[Tensor]()

    def greedy(logits: Tensor, _: Tensor) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    for now in (Phase.QUANTIZED, Phase.FLOAT):
        seen.clear()
        with phase(q, now), torch.no_grad():
            given = {"input_ids": ids(1, 15, seed=3), "max_new_tokens": 9, "eos_token_id": None}
            tokens = run.generate(**given, sampler=greedy)
            whole, reference = (m(tokens[:, :-1]).logits[0, -9:] for m in (q, fp))
        if now is Phase.FLOAT:
            torch.testing.assert_close(torch.cat(seen), reference, rtol=1e-5, atol=1e-5)
        else:
            assert peir(whole, torch.cat(seen)) <= 0.1 * peir(reference, whole)


def test_a_window_longer_than_the_bundle_keeps_all() -> None:
    assert LayerKind(1, 8, 64).kept(9) == 9
    assert LayerKind(1, 8, 4).kept(9) == 3
    assert LayerKind(1, 8, 1).kept(9) == 0
    assert LayerKind(1, 8).kept(9) == 9


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
def test_a_window_of_one_keeps_nothing(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers see the new token alone, and have no past; transformers' caches would keep all of it."""
    monkeypatch.setattr(unequal_toy, "WINDOW", 1)
    q = converted(model(), [{"input_ids": ids(1, 9, seed=2), "use_cache": False}])
    run = Graphs(ToyProfile(16, prefill_lengths=(4,), append_lengths=(3,), layers=layers), q)
    given = {"input_ids": ids(1, 6, seed=5), "max_new_tokens": 4, "eos_token_id": None}
    expected = q.generate(**given, do_sample=False, use_cache=False)
    assert torch.equal(run.generate(**given), expected)


# --- transformers' caches ---


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("rows", [(17,), (17, 9)], ids=["one", "padded"])
@pytest.mark.parametrize("cuts", [(2, 9, 10, 17), (11, 12, 17), (1, 4, 8, 17)])
@torch.no_grad()
def test_parts_longer_than_the_window_onto_transformers_caches(
    kind: str, rows: tuple[int, ...], cuts: tuple[int, ...]
) -> None:
    """Chunks shorter and longer than the window, onto caches shorter and longer than it."""
    fp, q = tree()
    given = padded(rows)
    valid = given["attention_mask"] != 0
    kept = DynamicCache(config=fp.config) if kind == "dynamic" else StaticCache(config=fp.config, max_cache_len=20)
    with phase(q, Phase.FLOAT):
        parts = [
            q(given["input_ids"][:, start:end], attention_mask=given["attention_mask"][:, :end], cache=kept).logits
            for start, end in pairwise((0, *cuts))
        ]
    expected = fp(**given).logits
    torch.testing.assert_close(torch.cat(parts, dim=1)[valid], expected[valid], rtol=1e-5, atol=1e-5)


# --- append ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_long_prompt_goes_in_parts(layout: str) -> None:
    """13 to 19 tokens: the longest prefill, then append graphs, the last part in the shortest that holds it."""
    run = graphs(layout)
    for length, appended in ((13, [2]), (14, [2]), (15, [5]), (17, [5]), (18, [5, 2]), (23, [5, 5, 2])):
        given = {"input_ids": ids(1, length, seed=length), "max_new_tokens": 5, "eos_token_id": None}
        run.calls.clear()
        assert torch.equal(run.generate(**given), tree()[1].generate(**given, do_sample=False))
        whole = [name.partition("_layer")[0] for name in run.calls if "_s" in name and "embedding" not in name]
        assert list(dict.fromkeys(whole)) == list(dict.fromkeys(["prefill_s12", *(f"append_s{n}" for n in appended)]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_prompts_of_unequal_length(layout: str) -> None:
    """One row ends in the prefill, the other in the second append."""
    for lengths in ((19, 3), (12, 17), (16, 13)):
        given = {**padded(lengths, "right"), "max_new_tokens": 5, "eos_token_id": None}
        expected = tree()[1].generate(**{**given, **padded(lengths)}, do_sample=False)[:, -5:]
        assert torch.equal(graphs(layout, 2).generate(**given)[:, -5:], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_turns_of_a_chat_are_one_conversation(layout: str) -> None:
    """Each answer is what the tree says to the whole text so far; nothing is computed twice."""
    run, past, text = graphs(layout), Past(), torch.empty(1, 0, dtype=torch.int64)
    run.calls.clear()
    for turn, length in enumerate((3, 1, 6, 4)):
        new = ids(1, length, seed=turn)
        text = torch.cat([text, new], dim=1)
        expected = tree()[1].generate(text, max_new_tokens=3, eos_token_id=None, do_sample=False)
        got = run.generate(input_ids=new, past=past, max_new_tokens=3, eos_token_id=None)
        assert torch.equal(got, expected[:, -length - 3 :])
        text = expected
    assert torch.equal(past.ids, text)
    assert sum("prefill" in name for name in run.calls) in (1, 6)


def left(past: Past, new: Tensor) -> dict[str, Tensor]:
    """The conversation of each row with `new` behind it, padded on the left."""
    rows = [torch.cat([row[real], more]) for row, real, more in zip(past.ids, past.real, new, strict=True)]
    given = {"input_ids": torch.full((len(rows), max(map(len, rows))), PAD)}
    given["attention_mask"] = torch.zeros_like(given["input_ids"])
    for i, row in enumerate(rows):
        given["input_ids"][i, -len(row) :], given["attention_mask"][i, -len(row) :] = row, 1
    return given


@pytest.mark.parametrize("layout", ["stack", "per_layer"])
def test_rows_that_end_early_go_on_in_the_next_turn(layout: str) -> None:
    """What follows the end of a row is padding: the ring of that row has to keep what stood there."""
    _, q = tree()
    run, past, first = graphs(layout, 2), Past(), padded((5, 2))
    free = q.generate(**first, max_new_tokens=9, eos_token_id=None, do_sample=False)[:, -9:]
    ends = int(free[0, 1])
    assert ends not in free[1].tolist()
    options = {"max_new_tokens": 9, "eos_token_id": ends, "pad_token_id": PAD}
    got = run.generate(**first, past=past, **options)
    assert torch.equal(got, q.generate(**first, **options, do_sample=False))
    assert past.real.sum(dim=1).tolist() == [7, 11]
    for seed in (1, 2):
        new = ids(2, 3, seed=seed)
        whole = left(past, new)
        expected = q.generate(**whole, max_new_tokens=4, eos_token_id=None, do_sample=False)
        got = run.generate(input_ids=new, past=past, max_new_tokens=4, eos_token_id=None)
        assert torch.equal(got, torch.cat([new, expected[:, -4:]], dim=1))


def test_penalties_count_the_whole_conversation() -> None:
    _, q = tree()
    run, past = graphs("stack"), Past()
    options = {"max_new_tokens": 4, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "eos_token_id": None}
    text = run.generate(input_ids=ids(1, 5), past=past, **options)
    new = ids(1, 2, seed=4)
    expected = q.generate(torch.cat([text, new], dim=1), **options, do_sample=False)
    assert torch.equal(run.generate(input_ids=new, past=past, **options), expected[:, -6:])


def test_a_turn_that_fails_changes_nothing() -> None:
    run, past = graphs("stack"), Past()
    run.generate(input_ids=ids(1, 5), past=past, max_new_tokens=3, eos_token_id=None)
    before, keys = past.ids, {i: key.clone() for i, (key, _) in past.state.layers.items()}

    def stop(scores: Tensor, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 12:
            raise KeyboardInterrupt
        return scores.argmax(dim=-1)

    with pytest.raises(KeyboardInterrupt):
        run.generate(input_ids=ids(1, 3, seed=1), past=past, max_new_tokens=6, sampler=stop, eos_token_id=None)
    with pytest.raises(InputError, match="a conversation of 28 tokens and max_new_tokens=5 need a cache longer than"):
        run.generate(input_ids=ids(1, 20, seed=1), past=past, max_new_tokens=5)
    with pytest.raises(InputError, match="33 tokens are more than max_seq_len 30 of this bundle; start another chat"):
        run.generate(input_ids=ids(1, 25, seed=1), past=past, max_new_tokens=5)
    assert past.ids is before
    assert all(torch.equal(key, keys[i]) for i, (key, _) in past.state.layers.items())
    expected = tree()[1].generate(torch.cat([before, ids(1, 2)], dim=1), max_new_tokens=2, do_sample=False)
    assert torch.equal(run.generate(input_ids=ids(1, 2), past=past, max_new_tokens=2), expected[:, -4:])


def test_the_longest_conversation_that_fits() -> None:
    """max_seq_len 30 with append_lengths: the last token needs no place, so that 31 are said in all."""
    run, past = graphs("stack"), Past()
    run.generate(input_ids=ids(1, 20), past=past, max_new_tokens=3, eos_token_id=None)
    text, new = past.ids, ids(1, 4, seed=1)
    with pytest.raises(InputError, match="at most 4 new tokens fit"):
        run.generate(input_ids=new, past=past, max_new_tokens=5)
    got = run.generate(input_ids=new, past=past, max_new_tokens=4, eos_token_id=None)
    whole = torch.cat([text, new], dim=1)
    expected = tree()[1].generate(whole, max_new_tokens=4, eos_token_id=None, do_sample=False)
    assert torch.equal(got, expected[:, -8:])
    with pytest.raises(InputError, match="start another chat, or export with a longer one"):
        run.generate(input_ids=new[:, :1], past=past, max_new_tokens=1)
    with pytest.raises(InputError, match="31 tokens are more than max_seq_len 30 of this bundle; shorten the prompt"):
        run.generate(input_ids=ids(1, 31), max_new_tokens=1)


def test_without_append_graphs() -> None:
    run = Graphs(ToyProfile(30, prefill_lengths=(12,)))
    with pytest.raises(InputError, match=r"13 tokens, more than every prefill length .*append_lengths=\(64,\)"):
        run.generate(input_ids=ids(1, 13), max_new_tokens=1)
    past = Past()
    run.generate(input_ids=ids(1, 5), past=past, max_new_tokens=2, eos_token_id=None)
    with pytest.raises(InputError, match=r"cannot go on with a chat: it has no append graph; export with append_len"):
        run.generate(input_ids=ids(1, 5), past=past, max_new_tokens=2)


# --- bands ---


def test_blocks_that_reach_a_window_back() -> None:
    assert block_length(512, 64, 3) == 64
    assert block_length(2048, 512, 3) == 512
    assert block_length(12, 4, 3) == 3  # window - 1 keys before a query are enough
    assert block_length(96, 64, 3) is None
    assert block_length(13, 4, 3) is None
    assert block_length(16, 1, 3) == 1
    for tokens, window in ((12, 4), (60, 7), (64, 33), (100, 20)):
        block = block_length(tokens, window, 2)
        assert block is not None
        assert tokens % block == 0
        assert block >= window - 1


@pytest.mark.parametrize("attention", ["batched", "per_head"])
@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_bands_are_the_full_mask_bit_for_bit(rows: int, attention: str) -> None:
    """Hidden states of every real token, and the keys that go into the cache."""
    lengths = (12, 7)[:rows]
    outs = []
    for sliding in ("full", "banded"):
        run = Graphs(ToyProfile(20, prefill_lengths=(12,), batch_size=rows, sliding=sliding, attention=attention))
        turn = run.host.turn(*padded(lengths, "right").values(), None, {"max_new_tokens": 1})
        hidden = run.host.prefill(run, turn.prompt(), turn.state)
        outs.append((hidden[turn.real], turn.state))
        shape = run.adapters["prefill_s12"].input_specs["attention_mask_sliding"].shape
        assert shape == (rows, 1, 12, 12 if sliding == "full" else 6)
        assert run.adapters["prefill_s12"].input_specs["attention_mask_full"].shape == (rows, 1, 12, 12)
    (full, first), (banded, second) = outs
    assert torch.equal(banded, full)
    for layer, pair in first.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.layers[layer], strict=True))


def test_auto_takes_bands_where_three_blocks_fit() -> None:
    _, q = tree()

    def columns(length: int, **changes: Any) -> int:
        profile = ToyProfile(48, prefill_lengths=(length,), **changes)
        part, own = profile.graphs(q)[f"prefill_s{length}"]
        return int(part.as_export_module(own).input_specs["attention_mask_sliding"].shape[3])

    assert [columns(n) for n in (6, 8, 9, 12, 13)] == [6, 8, 6, 6, 13]
    assert columns(12, sliding="full") == 12
    assert columns(6, sliding="banded") == 6
    for length in (5, 13):
        with pytest.raises(ProfileError, match=f"the prefill length {length} has no two equal blocks of 3 tokens"):
            columns(length, sliding="banded")
    ahead = LayerKind(1, 8, 4, ahead=True)
    assert TextProfile(1, 12, sliding="auto").block(ahead) is None
    assert TextProfile(1, 12, past_len=4, sliding="auto").block(LayerKind(1, 8, 4)) is None
    with pytest.raises(ProfileError, match="sliding is one of auto, full, banded, got 'ring'"):
        ToyProfile(8, sliding="ring")


# --- files ---


@torch.no_grad()
def test_float_graphs_on_onert() -> None:
    """Prefill in bands and an append onto rings, each within 1e-4 of what the tree computes in float."""
    pytest.importorskip("onert")  # no wheel for some Pythons
    _, q = tree()
    profile = ToyProfile(24, prefill_lengths=(12,), append_lengths=(5,), sliding="banded", batch_size=2)
    names = ("prefill_s12", "append_s5", "decode")
    with phase(q, Phase.FLOAT):
        for name in names:
            part, own = profile.graphs(q)[name]
            adapter = part.as_export_module(own)
            torch.manual_seed(3)
            given = {key: torch.randn(spec.shape) for key, spec in adapter.input_specs.items()}
            given = {k: torch.where(v > 1, -1e4, 0.0) if "mask" in k else v for k, v in given.items()}
            program = pyquant.export(part, own, target="onert", allow_float=True)
            assert program.check("onert") == []
            got, out = onert.run(program, given), adapter(*given.values())
            for key, value in zip(adapter.output_names, out, strict=True):
                assert float((got[key] - value).abs().max()) <= 1e-4 * max(1.0, float(value.abs().max())), (name, key)


@pytest.mark.parametrize("layout", ["stack", "banded_layers"])
def test_files_give_the_tokens_of_the_tree(layout: str, tmp_path: Path) -> None:
    """A prompt in parts, decode past the wrap, a second turn, in TICO's runtime; no graph holds a float tensor."""
    _, q = tree()
    changes = {**LAYOUTS[layout], "attention": "batched"}
    profile = ToyProfile(24, prefill_lengths=(6,), append_lengths=(3,), **changes)
    programs = pyquant.export_bundle(q, tmp_path / "b", profile)
    assert all(program.missing_qparams() == [] for program in programs.values())
    kept: dict[str, dict[str, Tensor]] = {}
    with Session(tmp_path / "b", runtime="tico") as session:
        host, past, text = Host(session.manifest), Past(), torch.empty(1, 0, dtype=torch.int64)

        def run(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            kept[name] = dict(inputs)
            return session.run(name, inputs)

        for turn, length in enumerate((8, 3)):
            new = ids(1, length, seed=turn)
            expected = q.generate(torch.cat([text, new], dim=1), max_new_tokens=4, eos_token_id=None, do_sample=False)
            got = host.generate(run, new, past=past, max_new_tokens=4, eos_token_id=None)
            assert torch.equal(got, expected[:, -length - 4 :])
            text = expected
    for name in [n for n in programs if n.startswith(("prefill", "append"))][:3]:
        assert op_faults(compare(programs[name], None, kept[name])) == [], name


def test_the_manifest_describes_rings_bands_and_append() -> None:
    _, q = tree()
    manifest = ToyProfile(30, prefill_lengths=(12,), append_lengths=(5,), layers="per_layer").manifest(q)
    assert manifest["append_lengths"] == [5]
    assert [each.get("capacity") for each in manifest["cache"]["layers"]] == [3, None, None, None, None, None]
    assert manifest["graphs"]["prefill_s12_layer0"]["bands"] == {"attention_mask_sliding": 3}
    assert "bands" not in manifest["graphs"]["prefill_s12_layer1"]
    assert manifest["graphs"]["append_s5_layer1"]["kind"] == "append"
    words = " ".join(manifest["host"])
    for part in ("in slot p modulo the layer's capacity", "2 * block columns", "append: as decode"):
        assert part in words
    plain = " ".join(ToyProfile(30, prefill_lengths=(12,), sliding="full").manifest(q)["host"])
    assert "append:" not in plain
    assert "bands:" not in plain


class Other:
    """A host that follows the manifest's words: one row, caches as dicts of slots, masks entry by entry."""

    def __init__(self, run: Graphs, manifest: Mapping[str, Any]) -> None:
        self.run, self.manifest, self.length = run, manifest, 0
        layers, whole = manifest["cache"]["layers"], manifest["cache"]["capacity"]
        self.layers = {i: {"capacity": whole, **each} for i, each in enumerate(layers) if "shares" not in each}
        self.caches: dict[int, dict[int, tuple[Tensor, Tensor]]] = {i: {} for i in self.layers}

    def tables(self, variant: str, places: int) -> dict[str, Tensor]:
        entry = self.manifest[f"rotary_{variant}"]
        at = torch.arange(self.length, self.length + places).float()
        angles = at[:, None] * torch.tensor(entry["inv_freq"])
        cos, sin = (each * entry["attention_scaling"] for each in (angles.cos(), angles.sin()))
        both = {"cos": torch.cat([cos, cos], 1), "signed_sin": torch.cat([-sin, sin], 1)}
        return {f"{name}_{variant}": each[None] for name, each in both.items()}

    def call(self, name: str, tokens: list[int], places: int) -> int:
        """One graph of `places` places; the most likely next token."""
        given: dict[str, Tensor] = {}
        for i, layer in self.layers.items():
            variant, slots, block = layer["variant"], 0, self.manifest["graphs"][name].get("bands", {})
            key = f"attention_mask_{variant}"
            if not name.startswith("prefill"):
                slots = layer["capacity"]
                shape = (1, layer["kv_heads"], 1, layer["head_dim"])
                empty = (torch.full(shape, 9.0), torch.full(shape, 9.0))
                pairs = [self.caches[i].get(s, empty) for s in range(slots)]
                given[f"past_key_{i}"], given[f"past_value_{i}"] = (
                    torch.cat(each, dim=2) for each in zip(*pairs, strict=True)
                )
            columns = 2 * block[key] if key in block else slots + places
            given[key] = torch.full((1, 1, places, columns), self.manifest["mask"]["fill"])
            for query in range(places):
                for column in range(columns):
                    at = self.length + query
                    if column < slots:
                        place = self.length - 1 - ((self.length - 1 - column) % slots)
                    elif key in block:
                        place = (query // block[key] - 1) * block[key] + column
                    else:
                        place = self.length + column - slots
                    near = at - place < layer.get("window", 10**6)
                    if 0 <= place <= at and near and place < self.length + len(tokens):
                        given[key][0, 0, query, column] = self.manifest["mask"]["keep"]
            given |= self.tables(variant, places)
        padded_ids = torch.tensor([tokens + [0] * (places - len(tokens))], dtype=torch.int32)
        given["inputs_embeds"] = self.run("token_embedding", {"input_ids": padded_ids})["inputs_embeds"]
        out = self.run(name, given)
        for i, layer in self.layers.items():
            for k in range(len(tokens)):
                pair = tuple(out[f"new_{what}_{i}"][:, :, k : k + 1] for what in ("key", "value"))
                self.caches[i][(self.length + k) % layer["capacity"]] = pair  # type: ignore[assignment]
        self.length += len(tokens)
        last = out["hidden_states"][:, len(tokens) - 1 : len(tokens)]
        return int(self.run("lm_head", {"hidden_states": last})["logits"].argmax())


def test_the_manifest_is_enough_for_another_host() -> None:
    """Prefill in bands, parts, decode past two wraps: the tree's tokens."""
    run = graphs("banded")
    host, tokens = Other(run, run.host.manifest), ids(1, 19, seed=6)[0].tolist()
    host.call("prefill_s12", tokens[:12], 12)
    host.call("append_s5", tokens[12:17], 5)
    answer = [host.call("append_s5", tokens[17:], 5)]  # two tokens, three places of padding
    for _ in range(8):
        answer.append(host.call("decode", answer[-1:], 1))
    expected = tree()[1].generate(torch.tensor([tokens]), max_new_tokens=9, eos_token_id=None, do_sample=False)
    assert answer == expected[0, 19:].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"append_lengths": (1,)}, "each of append_lengths is an integer of at least 2, got 1"),
        ({"append_lengths": (9,)}, "the append length 9 does not fit behind a first token into max_seq_len 9"),
        ({"append_lengths": "64"}, r"append_lengths are integers such as \(64, 256\), got '64'"),
    ],
)
def test_append_lengths_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        ToyProfile(9, **changes)


def test_no_end_of_text_is_in_the_prompts() -> None:
    """So that nothing above ends by chance."""
    assert EOS not in ids(1, 60)
    assert WINDOW == 4
