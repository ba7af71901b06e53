# SPDX-License-Identifier: Apache-2.0
"""A decoder of unequal layers (windows, head sizes, KV heads, rotary tables, shared keys): eager, graphs, host."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from unequal_toy import LAYERS, SHARES, WINDOW, ToyProfile, converted, ids, mask_of, model, padded

import pyquant
from pyquant.decoder.alone import alone
from pyquant.decoder.graphs import TextProfile
from pyquant.decoder.host import Host
from pyquant.decoder.kind import LayerKind, variants
from pyquant.errors import InputError
from pyquant.metrics import sqnr_db
from pyquant.verify import Session
from pyquant.wrap import Phase, set_phase
from pyquant.wrap.attention import FILL

OWNERS = [i for i, source in enumerate(SHARES) if source is None]


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    fp = model()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    set_phase(q, Phase.FLOAT)
    return fp, q


@cache
def tree() -> tuple[Any, Any]:
    """(float model, converted tree): changed by no test."""
    fp = model()
    return fp, converted(fp, [padded((11, 6, 8)), {"input_ids": ids(1, 14, seed=9)}])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


# --- eager ---


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_float_phase_is_the_model(both: tuple[Any, Any], side: str) -> None:
    given = padded((11, 6, 3), side)
    valid = given["attention_mask"] != 0
    expected, got = (m(**given).logits[valid] for m in both)
    close(got, expected)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("rows", [(11,), (11, 6)], ids=["one", "padded"])
@torch.no_grad()
def test_steps_with_a_cache_of_unequal_layers(both: tuple[Any, Any], kind: str, rows: tuple[int, ...]) -> None:
    """HF's cache keeps the last tokens alone of a layer with a window: fewer than the prompt has."""
    fp, q = both
    given = padded(rows)
    whole, valid = fp(**given).logits, given["attention_mask"] != 0
    cache = DynamicCache(config=fp.config) if kind == "dynamic" else StaticCache(config=fp.config, max_cache_len=16)
    parts = []
    for start, end in ((0, 7), (7, 9), (9, 10), (10, 11)):
        mask = given["attention_mask"][:, :end]
        parts.append(q(given["input_ids"][:, start:end], attention_mask=mask, cache=cache).logits)
    close(torch.cat(parts, dim=1)[valid], whole[valid])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_calibration_runs_rows_alone_beside_any_cache(kind: str) -> None:
    """A padded batch, and a second one behind it in the cache: outputs of real tokens are the model's."""
    fp = model()
    q = pyquant.prepare(fp, pyquant.Policy.preset("w8a8"))
    given = padded((11, 6, 8))
    whole, valid = fp(**given).logits, given["attention_mask"] != 0
    cache = DynamicCache(config=fp.config) if kind == "dynamic" else StaticCache(config=fp.config, max_cache_len=16)
    parts = [
        q(given["input_ids"][:, start:end], attention_mask=given["attention_mask"][:, :end], cache=cache).logits
        for start, end in ((0, 8), (8, 10), (10, 11))
    ]
    close(torch.cat(parts, dim=1)[valid], whole[valid])


def test_generate_gives_the_models_tokens(both: tuple[Any, Any]) -> None:
    options = {"max_new_tokens": 8, "do_sample": False}
    expected, got = (m.generate(**padded((9, 5)), **options) for m in both)
    assert torch.equal(got, expected)


# --- graphs ---


def host_inputs(q: Any, tokens: Tensor, past: int) -> dict[str, Tensor]:
    """Masks and tables of `tokens` (1, S) after `past` others, written out here; the cache is in order."""
    length = tokens.shape[1]
    at = torch.arange(past, past + length)
    found: dict[str, Tensor] = {}
    for name, window, rotary in (
        ("sliding", WINDOW, q.model.rotary_emb_local),
        ("full", None, q.model.rotary_emb),
    ):
        first = 0 if window is None else max(0, past - window + 1)
        mask = mask_of(torch.ones(1, past + length), at, first, past + length - first, window).clamp(min=FILL)
        cos, sin = rotary.float_rotary(torch.empty(0), at[None])
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        found |= {f"attention_mask_{name}": mask, f"cos_{name}": cos, f"signed_sin_{name}": signed}
    return found


def run(adapter: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One graph; every input that it has is in `given`, with the shape that it says."""
    shapes = {name: spec.shape for name, spec in adapter.input_specs.items()}
    assert {name: tuple(given[name].shape) for name in shapes if name != "input_ids"} == {
        name: shape for name, shape in shapes.items() if name != "input_ids"
    }
    out = adapter(*(given[name] for name in adapter.input_specs))
    return dict(zip(adapter.output_names, out if isinstance(out, tuple) else (out,), strict=True))


@torch.no_grad()
def test_stack_graphs_are_eager_bit_for_bit() -> None:
    """A prefill, then a decode over what it gave; only layers with keys of their own have a past."""
    _, q = tree()
    tokens = ids(1, 9, seed=4)
    text = q.model
    cache = DynamicCache(config=q.config)  # keeps the last keys of layers with a window, as the host does
    prompt = text(tokens[:, :8], cache=cache).last_hidden_state
    prefill = text.as_export_module(TextProfile(1, 8))
    made = run(prefill, {"inputs_embeds": text.embed_tokens(tokens[:, :8]), **host_inputs(q, tokens[:, :8], 0)})
    assert torch.equal(text.norm(made["hidden_states"]), prompt)
    assert set(made) == {"hidden_states", *(f"new_{what}_{i}" for i in OWNERS for what in ("key", "value"))}
    past = {}
    for i in OWNERS:
        kept = cache.layers[i].keys.shape[2]
        assert kept == (WINDOW - 1 if i == 0 else 8)
        assert torch.equal(made[f"new_key_{i}"][:, :, -kept:], cache.layers[i].keys)
        past |= {f"past_{what}_{i}": made[f"new_{what}_{i}"][:, :, -kept:] for what in ("key", "value")}
    step = text(tokens[:, 8:], cache=cache).last_hidden_state
    decode = text.as_export_module(TextProfile(1, 1, past_len=8))
    assert {name for name in decode.input_specs if name.startswith("past")} == set(past)
    out = run(decode, {"inputs_embeds": text.embed_tokens(tokens[:, 8:]), **host_inputs(q, tokens[:, 8:], 8), **past})
    assert torch.equal(text.norm(out["hidden_states"]), step)


@torch.no_grad()
def test_layer_graphs_are_the_stack() -> None:
    """Each layer's graph has the tensors of its own variant, and shared keys where it reads another layer's."""
    _, q = tree()
    tokens = ids(1, 8, seed=4)
    text = q.model
    tables, new = host_inputs(q, tokens, 0), {}
    given = {"inputs_embeds": text.embed_tokens(tokens), **tables}
    expected = run(text.as_export_module(TextProfile(1, 8)), given)["hidden_states"]
    hidden = given["inputs_embeds"]
    for i, (variant, source) in enumerate(zip(LAYERS, SHARES, strict=True)):
        adapter = text.as_export_module(TextProfile(1, 8, layer=i))
        name = variant.split("_")[0]
        shared = () if source is None else ("shared_key", "shared_value")
        own = ("hidden_states", f"attention_mask_{name}", f"cos_{name}", f"signed_sin_{name}", *shared)
        assert tuple(adapter.input_specs) == own
        other = "rotary_emb." if name == "sliding" else "rotary_emb_local."
        assert not any(f"module.{other}" in key for key in adapter.state_dict())
        more = {} if source is None else dict(zip(shared, new[source], strict=True))
        out = run(adapter, {"hidden_states": hidden, **tables, **more})
        hidden = out["hidden_states_out"]
        assert ("new_key" in out) == (source is None)
        if source is None:
            new[i] = (out["new_key"], out["new_value"])
    assert torch.equal(hidden, expected)


@torch.no_grad()
def test_the_graph_of_the_model_alone_takes_the_tensors_of_both_variants() -> None:
    _, q = tree()
    tokens = ids(1, 7, seed=2)
    made = alone(q.model, {"input_ids": tokens}, {"input_ids": tokens})
    assert made is not None
    adapter = q.model.as_export_module(made.profile)
    out = run(adapter, made.inputs)["hidden_states"]
    assert torch.equal(q.model.norm(out), q.model(tokens).last_hidden_state)


def test_a_layer_that_reads_keys_says_whose_are_absent() -> None:
    _, q = tree()
    tables = (torch.ones(1, 3, 8), torch.zeros(1, 3, 8))
    for shared in (None, {}):
        with pytest.raises(InputError, match=r"2.self_attn' has no keys .* those of layer 0, which were not"):
            q.model.layer(2).self_attn(torch.zeros(1, 3, 24), tables, shared=shared)


# --- manifest and host ---

LAYOUTS: dict[str, dict[str, Any]] = {
    "stack": {},
    "per_layer": {"layers": "per_layer"},
    "per_head": {"attention": "per_head"},
    "two_rows": {"batch_size": 2, "layers": "per_layer"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_host_gives_the_tokens_of_the_tree(layout: str) -> None:
    _, q = tree()
    profile = ToyProfile(20, prefill_lengths=(6, 12), **LAYOUTS[layout])
    adapters = {name: part.as_export_module(own) for name, (part, own) in profile.graphs(q).items()}
    host = Host(profile.manifest(q))
    rows = profile.batch_size
    for given in (padded((10, 4)[:rows]), padded((2, 5)[:rows])):
        expected = q.generate(**given, max_new_tokens=8, do_sample=False)
        with torch.no_grad():
            got = host.generate(lambda name, inputs: run(adapters[name], inputs), **given, max_new_tokens=8)
        assert torch.equal(got, expected)


def test_the_manifest_says_what_each_layer_keeps() -> None:
    _, q = tree()
    manifest = ToyProfile(20).manifest(q)
    sliding = {"kv_heads": 2, "head_dim": 8, "window": WINDOW, "variant": "sliding"}
    full = {"kv_heads": 1, "head_dim": 12, "variant": "full"}
    assert manifest["cache"]["layers"] == [
        {**sliding, "capacity": WINDOW - 1},
        full,
        {**sliding, "shares": 0},
        full,
        {**full, "shares": 3},
        {**sliding, "shares": 0},
    ]
    assert manifest["rotary_sliding"]["inv_freq"] == q.model.rotary_emb_local.float_rotary.inv_freq.tolist()
    assert manifest["rotary_full"]["inv_freq"] == q.model.rotary_emb.float_rotary.inv_freq.tolist()
    assert "rotary" not in manifest


@pytest.mark.parametrize("layers", ["stack", "per_layer"])
def test_files_give_the_tokens_of_the_tree(layers: str, tmp_path: Path) -> None:
    """Whole graphs and layer by layer, in TICO's runtime; no graph holds a float tensor."""
    fp, q = tree()
    programs = pyquant.export_bundle(q, tmp_path / "b", ToyProfile(12, prefill_lengths=(7,), layers=layers))
    assert all(program.missing_qparams() == [] for program in programs.values())
    expected = q.generate(ids(1, 6), max_new_tokens=5, do_sample=False)
    with Session(tmp_path / "b", runtime="tico") as session:
        host = Host(session.manifest)
        assert torch.equal(host.generate(session.run, ids(1, 6), max_new_tokens=5), expected)
    with torch.no_grad():
        assert sqnr_db(fp(expected).logits, q(expected).logits) > 20


def test_layers_that_contradict_each_other_are_refused() -> None:
    own = LayerKind(2, 8, 4, None, "sliding")
    for kinds, message in (
        ((own, LayerKind(2, 8, None, None, "sliding")), "the variant has window 4 and head_dim 8"),
        ((own, LayerKind(2, 8, 4, 1, "sliding")), "layer 1 reads the keys of layer 1, which has none before it"),
        ((own, LayerKind(1, 8, 4, 0, "sliding")), r"whose heads are 2 x 8, and expects 1 x 8"),
        ((own, LayerKind(2, 8, None, 0, "full")), "layer 0, which is of variant 'sliding': its keys are rotated by"),
    ):
        with pytest.raises(ValueError, match=message):
            variants(kinds)
