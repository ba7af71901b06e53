# SPDX-License-Identifier: Apache-2.0
"""Gemma4 text models with experts (the form of 26B-A4B: keys are values, no per-layer inputs): float = transformers,
quantized through generate() and static graphs, prefill with all experts and decode with those that are gathered."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from gemma4_text_tiny import F, S, causal_lm, ids
from torch import Tensor

import pyquant
from pyquant import Policy
from pyquant.decoder.alone import graph_tables
from pyquant.decoder.graphs import TextProfile
from pyquant.errors import ProfileError
from pyquant.metrics import sqnr_db
from pyquant.verify import compare
from pyquant.verify.tolerance import deep_faults, op_faults
from pyquant.wrap import Phase, phase

MOE: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "layer_types": [S, S, F],
    "sliding_window": 32,
}
PAST = 7


@functools.cache
def float_model() -> Any:
    return causal_lm("k_eq_v", **MOE)


@functools.cache
def quantized(recipe: str) -> Any:
    q = pyquant.prepare(float_model(), Policy.preset(recipe))
    pyquant.calibrate(q, [{"input_ids": ids(4, 24, seed)} for seed in range(2)], progress=False)
    pyquant.convert(q)
    return q


def near(got: Tensor, wanted: Tensor) -> bool:
    return float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@torch.no_grad()
def test_model_is_transformers_model_also_with_padding_and_a_cache() -> None:
    fp = float_model()
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    tokens = ids(3, 9)
    for padded in (None, torch.tensor([[1] * 9, [0] * 3 + [1] * 6, [1] * 5 + [0] * 4])):
        with phase(q, Phase.FLOAT):
            got, wanted = (model(input_ids=tokens, attention_mask=padded).logits for model in (q, fp))
        keep = slice(None) if padded is None else padded.bool()
        assert near(got[keep], wanted[keep])
    with phase(q, Phase.FLOAT):
        outs = [model.generate(tokens, max_new_tokens=10, do_sample=False) for model in (q, fp)]
    assert torch.equal(*outs)


@torch.no_grad()
def test_trap_router_and_the_norm_of_the_experts_read_the_residual_before_its_norm() -> None:
    """Where transformers' router got its input from, the wrapper's gets it too; it is not the dense MLP's."""
    fp, seen = float_model(), {}
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    for name, model in (("hf", fp), ("ours", q)):
        layer = model.model.layers[1]
        parts = (layer.router, layer.pre_feedforward_layernorm_2, layer.mlp)
        handles = [
            part.register_forward_pre_hook(lambda module, args, key=(name, number): seen.update({key: args[0]}))
            for number, part in enumerate(parts)
        ]
        with torch.no_grad():
            model(input_ids=ids(1, 6))
        for handle in handles:
            handle.remove()
    flat = {key: value.reshape(-1) for key, value in seen.items()}
    for number in range(3):
        assert near(flat["ours", number], flat["hf", number]), number
    assert torch.equal(flat["ours", 0], flat["ours", 1])
    assert not near(flat["ours", 0], flat["ours", 2])


@pytest.mark.parametrize(("recipe", "least"), [("w8a8", 12), ("w8a16", 25), ("w4a16", 8)])
@torch.no_grad()
def test_quantized_is_near_and_generates(recipe: str, least: float) -> None:
    fp, q, tokens = float_model(), quantized(recipe), ids(2, 12, seed=9)
    assert sqnr_db(fp(input_ids=tokens).logits, q(input_ids=tokens).logits) > least
    assert q.generate(tokens, max_new_tokens=5, do_sample=False).shape == (2, 17)


def test_a_router_keeps_8_bits_where_weights_have_4() -> None:
    layer = quantized("w4a16").model.layers[0]
    bits = [part.site("weight").spec.dtype.bits for part in (layer.router.proj, layer.experts.gate_up_proj)]
    assert bits == [8, 4]


def prefill_inputs(q: Any, tokens: Tensor) -> dict[str, Tensor]:
    model = q.model
    embeds = model.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1])[None, None].expand(model.axes, *tokens.shape)
    masks = model.masks(None, embeds, None)
    return {"inputs_embeds": embeds} | graph_tables(embeds, model, masks, model.tables(embeds, positions))


def decode_inputs(q: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The last of `tokens`, after a cache of those before it."""
    model = q.model
    cache = model(input_ids=tokens[:, :-1], use_cache=True)
    cache = getattr(cache, "past_key_values", None) or cache.cache
    embeds = model.embed_tokens(tokens[:, -1:])
    positions = torch.full((model.axes, 1, 1), tokens.shape[1] - 1)
    given = {"inputs_embeds": embeds}
    tables = model.tables(embeds, positions)
    for variant, kind in model.variants.items():
        given[kind.mask] = torch.zeros(1, 1, 1, tokens.shape[1])
        given |= {name: table[:, :, 0] for name, table in zip(kind.tables, tables[variant], strict=True)}
    for i, layer in enumerate(cache.layers):
        given[f"past_key_{i}"], given[f"past_value_{i}"] = layer.keys, layer.values
    return given


@pytest.mark.parametrize(
    "recipe", ["w8a8", *(pytest.param(each, marks=pytest.mark.slow) for each in ("w8a16", "w4a16"))]
)
@pytest.mark.parametrize("step", ["prefill", "decode"])
@torch.no_grad()
def test_graphs_compute_what_eager_computes(recipe: str, step: str) -> None:
    """Op by op with eager's own inputs, so that a tie that a file's router decides otherwise stays in one operator; end
    to end as a deep model."""
    q, tokens = quantized(recipe), ids(1, PAST + 1, seed=4)
    decoding = step == "decode"
    profile = TextProfile(1, 1, PAST) if decoding else TextProfile(1, PAST + 1)
    program = pyquant.export(q.model, profile)
    assert program.missing_qparams() == []
    stacks = [t for t in program.graph.tensors if len(t.shape) == 3 and t.shape[0] == 4 and t.constant is not None]
    assert len(stacks) >= 6
    gathers = sum(op.op == "GATHER" for op in program.graph.operators)
    assert gathers == 3 * (6 if decoding else 2), "decode gathers two weights and their scales, and the router's two"
    given = (decode_inputs if decoding else prefill_inputs)(q, tokens)
    given = {name: given[name] for name in (tensor.name for tensor in program.inputs)}
    report = compare(program, None, given)
    assert op_faults(report) == []
    with phase(q, Phase.FLOAT):
        floats = program.adapter(*given.values())
    reference = dict(zip((out.name for out in report.outputs), floats, strict=True))
    assert deep_faults(program, None, given, reference, report) == []


@torch.no_grad()
def test_decode_of_gathered_experts_follows_a_prefill_of_all() -> None:
    """The same token by a prefill graph (all experts) and by a decode graph on the cache (those that are gathered)."""
    q, tokens = quantized("w8a16"), ids(1, PAST + 1, seed=4)
    whole = q.model.as_export_module(TextProfile(1, PAST + 1))
    one = q.model.as_export_module(TextProfile(1, 1, PAST))
    given, after = prefill_inputs(q, tokens), decode_inputs(q, tokens)
    together = whole(*(given[name] for name in whole.input_specs))[0][:, -1]
    alone = one(*(after[name] for name in one.input_specs))[0][:, 0]
    step = float(q.model.layers[-1].site("act_out").scale)
    assert float((together - alone).abs().max()) <= 3 * step
    assert float(together.abs().max()) > 1000 * step


@torch.no_grad()
def test_a_profile_chooses_how_a_graph_uses_experts() -> None:
    q = quantized("w8a16")
    for layer, gathers in ((None, 3), (1, 1)):
        profiles = [TextProfile(1, 1, PAST, layer=layer, experts=each) for each in ("dense", "gather")]
        dense, gather = (pyquant.export(q.model, profile) for profile in profiles)
        counts = [sum(op.op == "GATHER" for op in each.graph.operators) for each in (dense, gather)]
        assert counts == [2 * gathers, 6 * gathers]
    given = decode_inputs(q, ids(1, PAST + 1, seed=4))
    adapters = (q.model.as_export_module(TextProfile(1, 1, PAST, experts=each)) for each in ("dense", "gather"))
    one, other = (adapter(*(given[name] for name in adapter.input_specs))[0] for adapter in adapters)
    assert float((one - other).abs().max()) <= 3 * float(q.model.layers[-1].site("act_out").scale)
    with pytest.raises(ProfileError, match=r"TextProfile\.experts is 'dense', 'gather' or None, got 'all'"):
        TextProfile(1, 1, experts="all")  # type: ignore[arg-type]
