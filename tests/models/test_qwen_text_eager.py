# SPDX-License-Identifier: Apache-2.0
"""The text model against transformers: masks, positions, caches, deepstack; and what calibration sees of padding."""

from __future__ import annotations

import copy
import tracemalloc

import pytest
import qwen_text_tiny as tiny
import torch
from hf_names import CACHE
from qwen_text_tiny import BATCHES, Batch, close
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3_vl import modeling_qwen3_vl as hf

import pyquant
from pyquant.decoder.masks import text_mask
from pyquant.metrics import sqnr_db
from pyquant.wrap import Phase, QModule, set_phase
from pyquant.wrap.attention import FILL

RIGHT, LEFT, ONE, TWO = BATCHES["right"], BATCHES["left"], BATCHES["one"], BATCHES["two"]


def pair(preset: str = "w8a8", **overrides) -> tuple[hf.Qwen3VLTextModel, QModule]:
    """The float model, and its tree in the float phase."""
    fp = tiny.text(**overrides)
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    set_phase(q, Phase.FLOAT)
    return fp, q


@pytest.fixture(scope="module")
def both():
    return pair()


def agree(fp, q, valid: Tensor | None = None, **given) -> None:
    with torch.no_grad():
        ours, theirs = q(**given), fp(**given)
    pick = (lambda t: t) if valid is None else (lambda t: t[valid])
    close(pick(ours.last_hidden_state), pick(theirs.last_hidden_state))
    assert type(ours) is type(theirs)
    assert type(ours.past_key_values) is type(theirs.past_key_values)


# --- masks ---


MASKS = {
    "none": lambda b: None,
    "2d_integer": lambda b: b.valid.long(),
    "2d_bool": lambda b: b.valid,
    "2d_float": lambda b: b.valid.float(),
    "4d_float": lambda b: tiny.causal(b).masked_fill(tiny.causal(b) < 0, torch.finfo(torch.float32).min),
    "4d_float_minus_inf": lambda b: tiny.causal(b).masked_fill(tiny.causal(b) < 0, -1e30),
}


@pytest.mark.parametrize("batch", [ONE, RIGHT, LEFT], ids=["one", "right", "left"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask(both, kind, batch):
    mask = MASKS[kind](batch)
    valid = batch.valid if mask is not None else None
    agree(*both, valid, input_ids=tiny.token_ids(batch), attention_mask=mask)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64], ids=["bool", "integer"])
def test_bool_and_integer_masks_of_four_dimensions_mean_what_sdpa_takes_them_for(kind):
    """HF's eager attention would add them to the logits."""
    fp, q = pair()
    fp.config._attn_implementation = "sdpa"
    mask = tiny.causal(RIGHT) == 0
    with torch.no_grad():
        ours = q(input_ids=tiny.token_ids(RIGHT), attention_mask=mask.to(kind)).last_hidden_state
        theirs = fp(input_ids=tiny.token_ids(RIGHT), attention_mask=mask).last_hidden_state
    close(ours[RIGHT.valid], theirs[RIGHT.valid])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("past", [0, 4])
def test_attention_alone_without_a_mask_is_causal_where_transformers_makes_it_so(attention, past):
    fp = tiny.CASES["attention"].build()
    fp.config._attn_implementation = attention
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    given = {"hidden_states": tiny.states(TWO), "position_embeddings": tiny.rotary(TWO), "attention_mask": None}
    if past:  # one more token: nothing is masked, whatever the implementation
        one = Batch((1, 1))
        given = {"hidden_states": tiny.states(one), "position_embeddings": tiny.rotary(one), "attention_mask": None}
        caches = [DynamicCache(), DynamicCache()]
        for cache in caches:
            cache.update(tiny.randn(2, 2, past, 16, seed=1), tiny.randn(2, 2, past, 16, seed=2), 1)
    else:
        caches = [None, None]
    with torch.no_grad():
        ours, theirs = (m(**given, **{CACHE: c})[0] for m, c in zip((q, fp), caches, strict=True))
    close(ours, theirs)


@pytest.mark.parametrize("batch", [ONE, RIGHT, LEFT], ids=["one", "right", "left"])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("cache_class", ["dynamic", "static"])
def test_masks_are_those_of_transformers(batch, past, cache_class):
    config, embeds = tiny.config(), tiny.states(batch)
    cache = None
    if past or cache_class == "static":
        cache = (
            DynamicCache(config=config) if cache_class == "dynamic" else StaticCache(config=config, max_cache_len=20)
        )
        for layer in range(config.num_hidden_layers if past else 0):
            cache.update(
                torch.ones(len(batch.lengths), 2, past, 16), torch.ones(len(batch.lengths), 2, past, 16), layer
            )
    valid = torch.cat([torch.ones(batch.shape[0], past, dtype=torch.bool), batch.valid], dim=1)
    for given in (None, valid.long()):
        theirs = create_causal_mask(
            config=config, inputs_embeds=embeds, attention_mask=given, **{CACHE: cache}, position_ids=None
        )
        ours = text_mask(given, embeds, cache).values
        assert torch.equal(ours.expand_as(theirs), theirs.clamp(min=FILL))


def test_packed_sequences_do_not_see_each_other(both):
    """Text positions that start again, without mask and cache, are several sequences in a row."""
    ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
    given = {"inputs_embeds": tiny.randn(2, 9, tiny.D, seed=1), "use_cache": False}
    agree(*both, position_ids=ids, **given)
    agree(*both, position_ids=torch.cat([ids[None], ids[None].expand(3, -1, -1) + 2]), **given)
    with torch.no_grad():
        packed = both[1](position_ids=ids, **given).last_hidden_state
        alone = both[1](inputs_embeds=given["inputs_embeds"][:1, 4:], use_cache=False).last_hidden_state
    close(packed[:1, 4:], alone)


# --- positions ---


POSITIONS = {
    "none": lambda b: None,
    "text": lambda b: b.positions[0] + 3,
    "one_row": lambda b: b.positions[0, :1],
    "three_axes": lambda b: b.positions,
    "four_rows": lambda b: torch.cat([torch.arange(b.shape[1]).expand(1, *b.shape), b.positions]),
}


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("by", ["ids", "embeds"])
def test_every_kind_of_position(both, kind, by):
    given = {"input_ids": tiny.token_ids(TWO)} if by == "ids" else {"inputs_embeds": tiny.states(TWO)}
    agree(*both, position_ids=POSITIONS[kind](TWO), use_cache=True, **given)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "linear", "factor": 2.0},
    ],
    ids=["yarn", "linear"],
)
def test_other_rotary_embeddings(rope):
    """YaRN's tables are larger than one: their sites observe it instead of assuming [-1, 1]."""
    base = tiny.BASE["rope_parameters"]
    fp, _ = pair(rope_parameters={**base, **rope}, num_hidden_layers=2)
    q = tiny.converted(fp, [tiny.CASES["model_biases"].inputs(fp, TWO)], "w8a16", ("embed_tokens:act_out",))
    given = tiny.CASES["model_biases"].inputs(fp, TWO)
    with torch.no_grad():
        expected = fp(**given).last_hidden_state
        assert sqnr_db(expected, q(**given).last_hidden_state) > 28
        set_phase(q, Phase.FLOAT)
        close(q(**given).last_hidden_state, expected)


# --- caches ---


@pytest.mark.parametrize("batch", [ONE, LEFT], ids=["one", "left"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_steps_with_a_cache_are_one_long_call(both, batch, kind):
    fp, q = both
    ids, length = tiny.token_ids(batch), batch.shape[1]
    with torch.no_grad():
        whole = fp(input_ids=ids, attention_mask=batch.mask, position_ids=batch.positions).last_hidden_state
        for model in (q, fp):
            cache = tiny.cache_of(fp) if kind == "dynamic" else StaticCache(config=fp.config, max_cache_len=16)
            parts = []
            for start, end in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
                out = model(
                    input_ids=ids[:, start:end],
                    attention_mask=None if batch.mask is None else batch.mask[:, :end],
                    position_ids=batch.positions[:, :, start:end],
                    **{CACHE: cache},
                )
                assert out.past_key_values is cache
                parts.append(out.last_hidden_state)
            assert int(cache.get_seq_length()) == length
            close(torch.cat(parts, dim=1)[batch.valid], whole[batch.valid])


def test_a_cache_is_made_as_transformers_makes_it(both):
    fp, q = both
    ids = tiny.token_ids(TWO)
    with torch.no_grad():
        for use_cache in (None, True, False):
            ours, theirs = (m(input_ids=ids, use_cache=use_cache).past_key_values for m in (q, fp))
            assert type(ours) is type(theirs)
            if ours is not None:
                for mine, his in zip(ours.layers, theirs.layers, strict=True):
                    close(mine.keys, his.keys)
                    close(mine.values, his.values)
        fp.config.use_cache = False
        try:
            assert q(input_ids=ids).past_key_values is None
        finally:
            fp.config.use_cache = True


def test_a_tuple_is_returned_on_request(both):
    fp, q = both
    with torch.no_grad():
        ours, theirs = (m(input_ids=tiny.token_ids(ONE), return_dict=False) for m in (q, fp))
    assert isinstance(ours, tuple)
    assert len(ours) == len(theirs)
    close(ours[0], theirs[0])


# --- deepstack ---


@pytest.mark.parametrize("taps", [0, 1, 3])
@pytest.mark.parametrize("layers", [3, 4])
def test_deepstack_is_added_at_visual_positions_after_the_first_layers(taps, layers):
    fp, q = pair(num_hidden_layers=layers)
    given = tiny.deepstacked(LEFT)
    features = tiny.features(LEFT, taps)
    kept = [f.clone() for f in features]
    agree(fp, q, LEFT.valid, **{**given, "deepstack_visual_embeds": features})
    assert all(map(torch.equal, features, kept))


def test_calls_with_and_without_images_are_the_same_arithmetic():
    fp = tiny.text()
    q = tiny.converted(fp, [tiny.deepstacked(TWO)], "w8a8", ("embed_tokens:act_out",))
    nowhere = torch.zeros(TWO.shape, dtype=torch.bool)
    with torch.no_grad():
        plain = q(inputs_embeds=tiny.states(TWO)).last_hidden_state
        empty = q(
            inputs_embeds=tiny.states(TWO),
            visual_pos_masks=nowhere,
            deepstack_visual_embeds=[torch.zeros(0, tiny.D)] * 3,
        ).last_hidden_state
    assert torch.equal(plain, empty)


# --- calibration ---


def grids(q: QModule) -> dict[str, tuple[float, int]]:
    found = {}
    for site in q.all_sites():
        if site.qparams is not None and site.qparams.scale.dim() == 0:
            found[site.path] = (float(site.qparams.scale), int(site.qparams.zero_point))
    return found


def rows_of(batch: Batch, given: dict) -> list[dict]:
    """The same tokens, a row at a time, without padding."""
    rows = []
    start = 0
    for row in range(batch.shape[0]):
        keep, n = batch.valid[row], int(batch.visual[row].sum())
        one = {"position_ids": given["position_ids"][:, row : row + 1, keep]}
        for name in ("input_ids", "inputs_embeds", "visual_pos_masks"):
            if name in given:
                one[name] = given[name][row : row + 1, keep]
        if "deepstack_visual_embeds" in given:
            one["deepstack_visual_embeds"] = [f[start : start + n] for f in given["deepstack_visual_embeds"]]
        start += n
        rows.append(one)
    return rows


@pytest.mark.parametrize("by", ["ids", "embeds"])
@pytest.mark.parametrize("batch", [RIGHT, LEFT], ids=["right", "left"])
def test_padding_is_not_observed(by, batch):
    """The ranges are those of the rows alone, whatever the padding is."""
    given = tiny.deepstacked(batch)
    if by == "ids":
        given.pop("inputs_embeds")
        given["input_ids"] = tiny.token_ids(batch).masked_fill(~batch.valid, 0)
        garbage = {**given, "input_ids": given["input_ids"].masked_fill(~batch.valid, 7)}
    else:
        garbage = {**given, "inputs_embeds": given["inputs_embeds"].masked_fill(~batch.valid[..., None], float("nan"))}
    unused = () if by == "ids" else ("embed_tokens:act_out",)
    padded, alone = (tiny.converted(tiny.text(), b, "w8a8", unused) for b in ([garbage], rows_of(batch, given)))
    assert grids(padded) == grids(alone)
    assert len(grids(padded)) > 150


def test_padded_calibration_returns_rows_in_place_and_fills_the_cache():
    fp = tiny.text()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    ids, cache, theirs = tiny.token_ids(LEFT), tiny.cache_of(fp), tiny.cache_of(fp)
    last = torch.ones(LEFT.shape[0], 1, dtype=torch.int64)
    with torch.no_grad():
        for tokens, mask, positions in (
            (ids, LEFT.mask, LEFT.positions),
            (
                last,
                torch.cat([LEFT.mask, last], dim=1),
                LEFT.positions.amax(dim=(0, 2))[None, :, None].expand(3, -1, 1) + 1,
            ),
        ):
            given = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
            ours, expected = q(**given, **{CACHE: cache}), fp(**given, **{CACHE: theirs})
            valid = mask[:, -tokens.shape[1] :] != 0
            close(ours.last_hidden_state[valid], expected.last_hidden_state[valid])
            assert not bool(ours.last_hidden_state[~valid].any())
    valid = mask != 0
    for mine, his in zip(cache.layers, theirs.layers, strict=True):
        for ours, expected in ((mine.keys, his.keys), (mine.values, his.values)):
            close(ours.transpose(1, 2)[valid], expected.transpose(1, 2)[valid])
            assert not bool(ours.transpose(1, 2)[~valid].any())


@pytest.mark.parametrize("preset", ["float", "w8a8", "w8a8_int8", "w8a16", "w4a16", "w4a8"])
def test_ids_run_under_every_preset(preset):
    """The embedding table is on one grid, that of the whole table."""
    fp = tiny.text(num_hidden_layers=2)
    batches = [{"input_ids": tiny.token_ids(b), "position_ids": b.positions} for b in (ONE, TWO)]
    q = tiny.converted(fp, batches, preset, () if preset == "float" else tiny.TEXT_ONLY)
    with torch.no_grad():
        assert sqnr_db(*(m(**batches[0]).last_hidden_state for m in (fp, q))) > (3 if preset.startswith("w4") else 12)
    table = q.embed_tokens.site("weight").qparams
    if preset != "float":
        assert table.scale.dim() == 0
        used = q.embed_tokens.const("weight", q.embed_tokens.weight) / table.scale
        torch.testing.assert_close(used, used.round(), rtol=0, atol=1e-3)


# --- state ---


def test_nothing_grows_with_the_longest_possible_sequence():
    tracemalloc.start()
    fp = tiny.text(max_position_embeddings=262144)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    with torch.no_grad():
        q(**tiny.deepstacked(LEFT))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 8 * 2**20
    tensors = [v for m in q.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    assert max(t.numel() for t in (*q.parameters(), *q.buffers(), *tensors)) == 4 * tiny.HEAD_DIM * tiny.D  # q_proj


@pytest.mark.parametrize("how", ["given", "meta", "config"])
def test_a_checkpoint_gives_the_same_bits(how, tmp_path):
    fp = tiny.text(attention_bias=True)
    q = tiny.converted(fp, [tiny.deepstacked(TWO)], "w4a16", ("embed_tokens:act_out",))
    pyquant.save_quantized(q, tmp_path / "q")
    other = {
        "given": lambda: tiny.randomized(tiny.text(attention_bias=True), 9),
        "meta": lambda: hf.Qwen3VLTextModel(tiny.config(attention_bias=True)).to("meta"),
        "config": lambda: None,
    }[how]()
    again = pyquant.load_quantized(tmp_path / "q", other)
    with torch.no_grad():
        for batch in (TWO, LEFT):
            given = tiny.deepstacked(batch)
            assert torch.equal(again(**given).last_hidden_state, q(**given).last_hidden_state)


def test_a_copy_and_another_dtype():
    fp = tiny.text()
    q = tiny.converted(fp, [tiny.deepstacked(TWO)], "w8a16", ("embed_tokens:act_out",))
    given = tiny.deepstacked(TWO)
    with torch.no_grad():
        expected = q(**given).last_hidden_state
        assert torch.equal(copy.deepcopy(q)(**given).last_hidden_state, expected)
        low = copy.deepcopy(q).to(torch.bfloat16)
        given = {k: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}
        given["deepstack_visual_embeds"] = [f.bfloat16() for f in given["deepstack_visual_embeds"]]
        assert sqnr_db(expected, low(**given).last_hidden_state) > 15
