# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode graphs of the text model: names, one grid for past and present, profiles that do not disturb."""

from __future__ import annotations

import copy

import pytest
import qwen_text_tiny as tiny
import torch
from qwen_text_tiny import BATCHES, Batch, close
from torch import Tensor

import pyquant
from pyquant.models.qwen3_vl import TextProfile
from pyquant.wrap import Phase, QModule, phase

ONE, TWO = BATCHES["one"], BATCHES["two"]
LAYERS = tiny.BASE["num_hidden_layers"]
EMBEDDED = ("embed_tokens:act_out",)


@pytest.fixture(scope="module")
def tree() -> tuple[torch.nn.Module, QModule]:
    """Calibrated on prompts alone: no cache, no single token."""
    fp = tiny.text(attention_bias=True)
    prompts = [{**tiny.deepstacked(batch), "use_cache": False} for batch in (ONE, TWO)]
    return fp, tiny.converted(fp, prompts, "w8a16", EMBEDDED)


def prefill(q: QModule, profile: TextProfile, batch: Batch, given: dict) -> dict[str, Tensor]:
    adapter = q.as_export_module(profile)
    tensors = {key: t for key, t in tiny.graph_inputs(given, batch).items() if key in adapter.input_specs}
    with torch.no_grad():
        return dict(zip(adapter.output_names, adapter(*tensors.values()), strict=True))


def next_token(batch: Batch, given: dict) -> dict:
    """One more token for each row, behind the longest."""
    rows = batch.shape[0]
    at = batch.positions.amax(dim=(0, 2)) + 1
    return {
        "inputs_embeds": tiny.randn(rows, 1, tiny.D, seed=77),
        "position_ids": at[None, :, None].expand(3, rows, 1),
        "attention_mask": torch.cat([batch.valid.long(), torch.ones(rows, 1, dtype=torch.int64)], dim=1),
    }


def decode_inputs(q: QModule, token: dict, cache: dict[str, Tensor], valid: Tensor, capacity: int) -> dict[str, Tensor]:
    """What the host gives the decode graph: the cache padded to its capacity with anything, and masked there."""
    rows, length = valid.shape
    cos, sin = q.rotary_emb.float_rotary(token["inputs_embeds"], token["position_ids"])
    keep = torch.zeros(rows, capacity + 1, dtype=torch.bool)
    keep[:, :length] = valid
    keep[:, -1] = True
    mask = torch.zeros(rows, 1, 1, capacity + 1).masked_fill(~keep[:, None, None], tiny.FILL)
    tensors = {
        "inputs_embeds": token["inputs_embeds"],
        "attention_mask": mask,
        "cos": cos,
        "signed_sin": tiny.signed(sin),
    }
    for i in range(LAYERS):
        for what in ("key", "value"):
            new = cache[f"new_{what}_{i}"]
            padded = 3 * tiny.randn(rows, new.shape[1], capacity, new.shape[3], seed=i)
            padded[:, :, :length] = new
            tensors[f"past_{what}_{i}"] = padded
    return tensors


def test_names_of_inputs_and_outputs(tree):
    _, q = tree
    kv = [f"{what}_{i}" for i in range(LAYERS) for what in ("key", "value")]
    rest = ["attention_mask", "cos", "signed_sin"]
    adapter = q.as_export_module(TextProfile(1, 8, deepstack=3))
    assert adapter.name == "prefill_s8"
    assert list(adapter.input_specs) == ["inputs_embeds", "deepstack_0", "deepstack_1", "deepstack_2", *rest]
    assert list(adapter.output_names) == ["hidden_states", *(f"new_{name}" for name in kv)]
    adapter = q.as_export_module(TextProfile(2, 1, past_len=15))
    assert adapter.name == "decode"
    assert list(adapter.input_specs) == ["inputs_embeds", *rest, *(f"past_{name}" for name in kv)]
    assert list(adapter.output_names) == ["hidden_states", *(f"new_{name}" for name in kv)]
    assert adapter.input_specs["attention_mask"].shape == (2, 1, 1, 16)
    assert adapter.input_specs["past_key_0"].shape == (2, 2, 15, tiny.HEAD_DIM)
    assert adapter.input_specs["cos"].shape == (2, 1, tiny.HEAD_DIM)
    adapter = q.as_export_module(TextProfile(1, 8, deepstack=2, layer=1))
    assert adapter.name == "prefill_s8_layer1"
    assert list(adapter.input_specs) == ["hidden_states", "deepstack", *rest]
    assert list(adapter.output_names) == ["hidden_states_out", "new_key", "new_value"]
    assert list(q.as_export_module(TextProfile(1, 8, deepstack=2, layer=2)).input_specs) == ["hidden_states", *rest]
    adapter = q.as_export_module(TextProfile(1, 1, past_len=7, layer=2))
    assert adapter.name == "decode_layer2"
    assert list(adapter.input_specs) == ["hidden_states", *rest, "past_key", "past_value"]
    assert TextProfile(1, 4, past_len=8).name == "append_s4"


@pytest.mark.parametrize("batch", [ONE, BATCHES["right"], BATCHES["left"]], ids=["one", "right", "left"])
def test_prefill_then_decode_over_a_padded_cache_is_one_long_call(tree, batch):
    """The quantized tree's own full forward, and transformers' in the float phase."""
    fp, q = tree
    given = tiny.deepstacked(batch)
    token = next_token(batch, given)
    rows, length = batch.shape
    long = {
        "inputs_embeds": torch.cat([given["inputs_embeds"], token["inputs_embeds"]], dim=1),
        "position_ids": torch.cat([given["position_ids"], token["position_ids"]], dim=2),
        "attention_mask": token["attention_mask"],
        "visual_pos_masks": torch.cat([batch.visual, torch.zeros(rows, 1, dtype=torch.bool)], dim=1),
        "deepstack_visual_embeds": given["deepstack_visual_embeds"],
    }
    for now, model, tolerance in ((Phase.QUANTIZED, q, 2e-3), (Phase.FLOAT, fp, 1e-5)):
        with phase(q, now), torch.no_grad():
            whole = model(**long).last_hidden_state
            cache = prefill(q, TextProfile(*batch.shape, deepstack=3), batch, given)
            close(q.norm(cache["hidden_states"])[batch.valid], whole[:, :-1][batch.valid], tolerance)
            decode = q.as_export_module(TextProfile(rows, 1, past_len=length + 3))
            tensors = decode_inputs(q, token, cache, batch.valid, length + 3)
            out = decode(*tensors.values())
            close(q.norm(out[0])[:, 0], whole[:, -1], tolerance)


def test_decode_is_eager_bit_for_bit_and_depends_on_the_past(tree):
    """With as many keys as eager has; calibration saw neither a cache nor a single token."""
    _, q = tree
    given = tiny.deepstacked(TWO)
    token = next_token(TWO, given)
    with torch.no_grad():
        eager_cache = q(**{**given, "use_cache": True}).past_key_values
        cache = prefill(q, TextProfile(*TWO.shape, deepstack=3), TWO, given)
        for i, layer in enumerate(eager_cache.layers):
            assert torch.equal(layer.keys, cache[f"new_key_{i}"])
            assert torch.equal(layer.values, cache[f"new_value_{i}"])
        decode = q.as_export_module(TextProfile(2, 1, past_len=7))
        tensors = decode_inputs(q, token, cache, TWO.valid, 7)
        out = decode(*tensors.values())
        expected = q(**token, past_key_values=eager_cache).last_hidden_state
        assert torch.equal(q.norm(out[0]), expected)
        program = torch.export.export(decode, tuple(tensors.values()), strict=False)
        assert all(map(torch.equal, program.module()(*tensors.values()), out))
        for i in range(LAYERS):
            other = {**tensors, f"past_key_{i}": tensors[f"past_key_{i}"].flip(2)}
            assert not torch.equal(decode(*other.values())[0], out[0])
            other = {**tensors, f"past_value_{i}": tensors[f"past_value_{i}"] * 0.5}
            assert not torch.equal(decode(*other.values())[0], out[0])


def nodes_of(program: torch.export.ExportedProgram) -> dict[str, int]:
    buffers, found = program.graph_signature.inputs_to_buffers, {}
    for node in program.graph.nodes:
        if str(node.target) == "pyquant.fake_quantize.default":
            site = buffers[node.args[1].name].removeprefix("module.").removesuffix(".scale")
            found[site] = found.get(site, 0) + 1
    return found


def test_past_and_present_share_a_site_and_a_grid(tree):
    _, q = tree
    program = pyquant.export(q, TextProfile(1, 1, past_len=6))
    counts = nodes_of(program.exported)
    twice = {f"layers.{i}.self_attn.sites.{what}" for i in range(LAYERS) for what in ("key", "value")}
    assert {site for site, count in counts.items() if count != 1} == twice
    assert {counts[site] for site in twice} == {2}
    grid = {t.name: t.quant for t in (*program.inputs, *program.outputs)}
    for i in range(LAYERS):
        for what in ("key", "value"):
            scale = q.layers[i].self_attn.site(what).qparams.scale
            past, new = grid[f"past_{what}_{i}"], grid[f"new_{what}_{i}"]
            assert past.scale == new.scale == (float(scale),)
            assert past.zero_point == new.zero_point
            assert 0 < past.scale[0] < float("inf")
    # The only change of grids: where images would have been added, calls without any go on in the range of both.
    requantized = [program.graph.tensors[op.inputs[0]].name for op in program.graph.operators if op.op == "QUANTIZE"]
    assert requantized == [f"layers.{i}.add_2" for i in range(LAYERS)]


@pytest.mark.parametrize("past", [0, 5])
def test_layers_in_a_row_are_the_stack(tree, past):
    _, q = tree
    given = tiny.deepstacked(TWO)
    tensors = tiny.graph_inputs(given, TWO)
    cached = {
        f"past_{what}_{i}": tiny.randn(2, 2, past, tiny.HEAD_DIM, seed=9 + i)
        for i in range(LAYERS if past else 0)
        for what in ("key", "value")
    }
    tensors["attention_mask"] = torch.nn.functional.pad(tensors["attention_mask"], (past, 0))
    with torch.no_grad():
        stack = q.as_export_module(TextProfile(*TWO.shape, past_len=past, deepstack=3))
        whole = stack(*{**tensors, **cached}.values())
        hidden, new = tensors["inputs_embeds"], []
        for i in range(LAYERS):
            part = q.as_export_module(TextProfile(*TWO.shape, past_len=past, deepstack=3, layer=i))
            mine = {**tensors, "hidden_states": hidden, "deepstack": tensors[f"deepstack_{i}"]}
            mine |= {f"past_{what}": cached.get(f"past_{what}_{i}") for what in ("key", "value")}
            hidden, *pair = part(*(mine[name] for name in part.input_specs))
            new += pair
    assert torch.equal(hidden, whole[0])
    assert all(map(torch.equal, new, whole[1:]))


@pytest.mark.parametrize("now", [Phase.FLOAT, Phase.QUANTIZED], ids=lambda p: p.name)
@pytest.mark.parametrize("past", [0, 5])
def test_one_product_per_head_gives_the_same(tree, now, past):
    _, q = tree
    given = tiny.deepstacked(BATCHES["left"])
    rows, length = BATCHES["left"].shape
    tensors = {**tiny.graph_inputs(given, BATCHES["left"])}
    tensors["attention_mask"] = torch.nn.functional.pad(tensors["attention_mask"], (past, 0))
    for i in range(LAYERS if past else 0):
        for what in ("key", "value"):
            tensors[f"past_{what}_{i}"] = tiny.randn(rows, 2, past, tiny.HEAD_DIM, seed=9 + i)
    with phase(q, now), torch.no_grad():
        batched, single = (
            q.as_export_module(TextProfile(rows, length, past_len=past, deepstack=3, attention=attention))
            for attention in ("batched", "per_head")
        )
        tolerance = 1e-5 if now is Phase.FLOAT else 1e-3  # sums in another order: a rounding flips here and there
        for a, b in zip(single(*tensors.values()), batched(*tensors.values()), strict=True):
            close(a, b, tolerance)


def test_per_head_graphs_have_products_of_one_head(tree):
    _, q = tree
    profile = TextProfile(1, 6, deepstack=2, layer=1, attention="per_head")
    program = pyquant.export(q, profile)
    tensors = program.graph.tensors
    products = [op for op in program.graph.operators if op.op == "BATCH_MATMUL"]
    assert len(products) == 2 * tiny.BASE["num_attention_heads"]
    for op in products:
        for index in (*op.inputs, *op.outputs):
            assert all(size == 1 for size in tensors[index].shape[:-2])
    assert [t.name for t in tensors if t.is_float] == []
    assert not any(op.op == "QUANTIZE" for op in program.graph.operators)


def test_a_second_profile_changes_nothing_in_the_first(tree):
    _, q = tree
    first = q.as_export_module(TextProfile(*TWO.shape, deepstack=3))
    x = tuple(tiny.graph_inputs(tiny.deepstacked(TWO), TWO).values())
    state = {name: t.clone() for name, t in q.state_dict().items()}
    with torch.no_grad():
        before = first(*x)
        graph = pyquant.export(q, TextProfile(1, 1, past_len=4, layer=1)).graph
        pyquant.export(q, TextProfile(2, 5, layer=0, attention="per_head"))
        q.as_export_module(TextProfile(3, 2, past_len=9))
        again = pyquant.export(q, TextProfile(1, 1, past_len=4, layer=1)).graph
        assert all(map(torch.equal, first(*x), before))
    assert again.to_json() == graph.to_json()
    assert all(torch.equal(a.tensor(), b.tensor()) for a, b in zip(again.constants, graph.constants, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in q.state_dict().items())
    assert list(first.state_dict()) == [f"module.{name}" for name in q.state_dict()]  # it owns no tensor


def test_adapters_copy_and_stay_in_eval(tree):
    _, q = tree
    x = tuple(tiny.graph_inputs(tiny.deepstacked(TWO), TWO).values())
    adapter = q.as_export_module(TextProfile(*TWO.shape, deepstack=3))
    with torch.no_grad():
        assert all(map(torch.equal, copy.deepcopy(adapter)(*x), adapter(*x)))
    assert adapter.train() is adapter
    assert not adapter.training


def test_a_tree_in_its_float_phase_exports_as_float(tree):
    fp, q = tree
    given = tiny.deepstacked(TWO)
    with phase(q, Phase.FLOAT), torch.no_grad():
        program = pyquant.export(q, TextProfile(*TWO.shape, deepstack=3), allow_float=True)
        out = program.exported.module()(*tiny.graph_inputs(given, TWO).values())[0]
        assert not any("fake_quantize" in str(node.target) for node in program.exported.graph.nodes)
        close(q.norm(out), fp(**given).last_hidden_state)


# --- the tree itself through torch.export, with a sequence length that is not known ---


class Call(torch.nn.Module):
    """A call of the tree as torch.export wants one: tensors in, a tensor out."""

    def __init__(self, q: QModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.q, self.names = q, names

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        if "deepstack" in given:
            given["deepstack_visual_embeds"] = [given.pop("deepstack")]
        out: Tensor = self.q(**given).last_hidden_state
        return out


DYNAMIC = {
    "embeds": ("inputs_embeds",),
    "embeds_mask_positions": ("inputs_embeds", "attention_mask", "position_ids"),
    "deepstack": ("inputs_embeds", "position_ids", "visual_pos_masks", "deepstack"),
    "ids_mask": ("input_ids", "attention_mask"),
}


@pytest.mark.parametrize("names", DYNAMIC.values(), ids=DYNAMIC)
def test_the_tree_exports_with_a_dynamic_sequence_length(names):
    fp = tiny.text(num_hidden_layers=1)  # an export with symbols takes seconds a layer
    both = [{"input_ids": tiny.token_ids(TWO)}, tiny.CASES["model_biases"].inputs(fp, TWO)]
    q = tiny.converted(fp, both, "w8a8")

    def inputs(batch: Batch, length: int) -> dict[str, Tensor]:
        where = torch.zeros(2, length, dtype=torch.bool)
        where[:, 1:3] = True
        return {
            "inputs_embeds": tiny.randn(2, length, tiny.D, seed=length),
            "input_ids": torch.randint(1, tiny.VOCAB, (2, length), generator=torch.Generator().manual_seed(length)),
            "attention_mask": (torch.arange(length) >= torch.tensor([[0], [2]])).long(),
            "position_ids": torch.arange(length).expand(3, 2, length) + torch.tensor([0, 1, 5])[:, None, None],
            "visual_pos_masks": where,
            "deepstack": tiny.randn(4, tiny.D, seed=5),
        }

    dims = {name: {1: torch.export.Dim("tokens", min=2, max=64)} for name in inputs(TWO, 7)}
    dims["position_ids"] = {2: dims["inputs_embeds"][1]}
    for name in ("input_ids", "attention_mask", "visual_pos_masks"):
        dims[name] = {1: dims["inputs_embeds"][1]}
    dims["deepstack"] = {}
    call, example = Call(q, names), inputs(TWO, 7)
    shapes = (tuple(dims[name] for name in names),)
    program = torch.export.export(call, tuple(example[n] for n in names), dynamic_shapes=shapes, strict=False)
    assert any("fake_quantize" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        for length in (3, 7, 20):
            given = inputs(TWO, length)
            tensors = tuple(given[name] for name in names)
            assert torch.equal(program.module()(*tensors), call(*tensors)), length
