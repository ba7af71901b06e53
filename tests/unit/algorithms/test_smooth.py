# SPDX-License-Identifier: Apache-2.0
"""Smoothing: outputs stay as they are in every family, scales are the papers', and the search finds what loses less."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import pyquant
from pyquant import IntType, PerAxis, PerTensor, Policy, QuantSpec, Rule
from pyquant.algorithms import smooth as public
from pyquant.algorithms.channels import Channels
from pyquant.algorithms.smooth import _Link, _loss, smooth
from pyquant.errors import CalibrationError, InputError, PhaseError
from pyquant.metrics import sqnr_db
from pyquant.models.example import made_up_image, randomize_
from pyquant.models.gemma4 import whole_example as gemma4
from pyquant.models.llama import example as llama
from pyquant.models.qwen3_vl import example as qwen3_vl
from pyquant.qparams import QParams
from pyquant.weight import weights
from pyquant.wrap import Phase, phase

torch.set_num_threads(1)

EXAMPLE: dict[str, Any] = {"llama": llama, "qwen3_vl": qwen3_vl, "gemma4": gemma4}


def given(family: str) -> tuple[Any, dict[str, Any]]:
    """A model in which no gain is one and no bias zero, and inputs for it: two images, where it takes some."""
    fp = EXAMPLE[family].tiny_model()
    if family != "gemma4":  # which is random already, with an attention that is not too sharp
        randomize_(fp, seed=5)
    images = [] if family == "llama" else [made_up_image(), made_up_image().flip(0)]
    return fp, EXAMPLE[family].example_inputs(fp, images)


def prepared(fp: nn.Module, preset: str = "w8a8") -> Any:
    return pyquant.prepare(fp, pyquant.Policy.preset(preset))


def snapshot(q: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in q.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("family", EXAMPLE)
@pytest.mark.parametrize("alpha", [0.5, "search"])
@torch.no_grad()
def test_outputs_stay_as_they_are(family: str, alpha: Any) -> None:
    fp, batch = given(family)
    expected, before = fp(**batch).logits, {n: p.clone() for n, p in fp.named_parameters()}
    q = prepared(fp)
    done = smooth(q, [batch], alpha=alpha)
    with phase(q, Phase.FLOAT):
        out = q(**batch).logits
    assert float((out - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert all(torch.equal(p, before[n]) for n, p in fp.named_parameters())
    assert len(done) == {"llama": 7 + 6, "qwen3_vl": 7 + 9 + 9, "gemma4": 9 + 4}[family]
    assert all(one.how != "kept" for one in done)
    gains = {n: p for n, p in snapshot(q).items() if "norm" in n}
    changed = {one.before for one in done if "norm" in one.before}
    assert changed == {
        n.removesuffix(".weight")
        for n, p in gains.items()
        if n in before and not torch.equal(p, before[n]) and n.endswith(".weight")
    }


@torch.no_grad()
def test_scales_are_those_of_the_paper() -> None:
    """Equation 4 of arXiv 2211.10438, for a norm and its readers, and for heads that share values."""
    fp, batch = given("llama")
    q, alpha = prepared(fp), 0.7
    layer, seen = fp.model.layers[1], {}
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        layer.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
    fp(**batch)
    smooth(q, [batch], alpha=alpha)

    def expected(x: torch.Tensor, *readers: nn.Module) -> torch.Tensor:
        return x.abs().amax((0, 1)) ** alpha / torch.cat([r.weight for r in readers]).abs().amax(0) ** (1 - alpha)

    own = q.model.layers[1]
    attn = layer.self_attn
    s = expected(seen["self_attn.q_proj"], attn.q_proj, attn.k_proj, attn.v_proj)
    ratio = layer.input_layernorm.weight / own.input_layernorm.weight
    assert torch.allclose(ratio, s / s.log().mean().exp(), rtol=1e-4)
    assert torch.allclose(own.self_attn.k_proj.weight, attn.k_proj.weight * ratio, rtol=1e-4, atol=1e-6)
    s = expected(seen["mlp.down_proj"], layer.mlp.down_proj)
    ratio = (own.mlp.down_proj.weight / layer.mlp.down_proj.weight).median(0).values
    assert torch.allclose(ratio, s / s.log().mean().exp(), rtol=1e-4)
    x = seen["self_attn.o_proj"].abs().amax((0, 1)).reshape(2, 2, 8).amax(1)  # heads of values, queries of each, size
    w = attn.o_proj.weight.abs().amax(0).reshape(2, 2, 8).amax(1)
    s = (x**alpha / w ** (1 - alpha)).reshape(-1)
    ratio = (own.self_attn.o_proj.weight / attn.o_proj.weight).median(0).values
    expected_columns = (s / s.log().mean().exp()).reshape(2, 1, 8).expand(2, 2, 8).reshape(-1)
    assert torch.allclose(ratio, expected_columns, rtol=1e-4)


def linear(bits: int, act_bits: int) -> Any:
    per_row = QuantSpec(IntType(bits, signed=True), symmetric=True, granularity=PerAxis(0))
    of_inputs = QuantSpec(IntType(act_bits, signed=True), symmetric=True, granularity=PerTensor())
    policy = Policy((Rule("*", role="weight", spec=per_row), Rule("*act_in", role="activation", spec=of_inputs)))
    torch.manual_seed(0)
    return pyquant.prepare(nn.Linear(64, 48, bias=False), policy)


@pytest.mark.parametrize(("bits", "act_bits"), [(4, 16), (8, 8), (4, 8)])
@torch.no_grad()
def test_the_expected_loss_is_the_loss(bits: int, act_bits: int) -> None:
    """Against rounding inputs and weights, for independent channels of very different size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 64, generator=generator) * torch.logspace(-1, 1, 64)
    scale = torch.logspace(-0.5, 0.5, 64).double()
    q = linear(bits, act_bits)
    channels = Channels(q, [q])
    channels.collect([x], "test")
    link = _Link(q, (q,), torch.arange(64), 64)
    for chosen in (None, scale):
        s = torch.ones(64) if chosen is None else chosen.float()
        rounded = linear(bits, act_bits)
        next(iter(weights(rounded))).replace(q.weight * s)
        pyquant.calibrate(rounded, [x / s], progress=False)
        pyquant.convert(rounded, unused=["*act_out"])
        actual = float((rounded(x / s) - x @ q.weight.T).square().sum())
        assert math.isclose(_loss(link, [channels.of(q)], chosen), actual, rel_tol=0.1)


@pytest.mark.parametrize("alpha", [0.5, "search"])
@torch.no_grad()
def test_outlier_channels_cost_less(alpha: Any) -> None:
    """A few channels of the norms' outputs that are fifty times the others, as in real networks."""
    fp, batch = given("llama")
    for layer in fp.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[3] *= 50
    for layer in fp.model.layers:
        for reader in (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
            layer.mlp.gate_proj,
            layer.mlp.up_proj,
        ):
            reader.weight[:, 3] /= 50
    expected = fp(**batch).logits

    def loss(smoothed: bool) -> float:
        q = prepared(fp)
        if smoothed:
            smooth(q, [batch], alpha=alpha)
        pyquant.calibrate(q, [batch], progress=False)
        pyquant.convert(q)
        return sqnr_db(expected, q(**batch).logits)

    assert loss(True) > loss(False) + 6  # dB


@torch.no_grad()
def test_the_search_keeps_what_nothing_rounds() -> None:
    fp, batch = given("llama")
    q = prepared(fp, "float")
    own = snapshot(q)
    assert {(one.how, one.loss) for one in smooth(q, [batch], alpha="search")} == {("kept", None)}
    assert all(p is dict(fp.named_parameters(remove_duplicate=False))[n] for n, p in q.named_parameters())
    assert all(torch.equal(p, own[n]) for n, p in snapshot(q).items())


def test_a_channel_that_is_always_zero_keeps_its_scale() -> None:
    fp, batch = given("llama")
    with torch.no_grad():
        fp.model.layers[0].mlp.up_proj.weight[5] = 0
        fp.model.layers[0].mlp.down_proj.weight[:, 7] = 0
    q = prepared(fp)
    smooth(q, [batch], kinds=["pairs"])
    down, up = q.model.layers[0].mlp.down_proj.weight, q.model.layers[0].mlp.up_proj.weight
    assert torch.equal(down[:, 5], fp.model.layers[0].mlp.down_proj.weight[:, 5])
    assert torch.equal(up[7], fp.model.layers[0].mlp.up_proj.weight[7])
    assert all(bool(torch.isfinite(p).all()) for p in q.parameters())


@torch.no_grad()
def test_kinds_are_chosen() -> None:
    fp, batch = given("llama")
    q = prepared(fp)
    assert len(smooth(q, [batch], kinds=["pairs"])) == 6
    assert q.model.norm.weight is fp.model.norm.weight
    assert public is smooth


def test_errors() -> None:
    fp, batch = given("llama")
    q = prepared(fp)
    own = snapshot(q)
    with pytest.raises(InputError, match=r'alpha is a number from 0 to 1, or "search", got 1.5'):
        smooth(q, [batch], alpha=1.5)
    with pytest.raises(InputError, match=r"kinds is a list of 'feeds', 'pairs', got 'feeds'"):
        smooth(q, [batch], kinds="feeds")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="smooth got no batches"):
        smooth(q, [])
    with pytest.raises(InputError, match="nothing to scale in this QuantLinear"):
        smooth(prepared(nn.Linear(4, 4)), [torch.ones(1, 4)])
    with torch.no_grad():
        bad = prepared(fp, "w8a8")
        bad.model.embed_tokens.weight = nn.Parameter(torch.full_like(fp.model.embed_tokens.weight, math.nan))
    with pytest.raises(CalibrationError, match=r"smooth: the inputs of '.*' have NaN or Inf"):
        smooth(bad, [batch])
    decided = list(weights(q))[-1]
    decided.decide(decided.site.compute_qparams(), "test")
    with pytest.raises(PhaseError, match=r"is decided \(test\)"):
        smooth(q, [batch])
    assert all(p.shape == own[n].shape for n, p in snapshot(q).items())
    changed = [n for n, p in snapshot(q).items() if not torch.equal(p, own[n])]
    assert changed == ["lm_head.weight"]  # what was decided above


def test_a_trained_grid_of_activations_stands_in_the_way() -> None:
    fp, batch = given("llama")
    q = prepared(fp)
    site = q.model.layers[0].mlp.down_proj.site("act_in")
    spec = QuantSpec(IntType(8, signed=True), symmetric=True)
    site.decide(QParams(spec, torch.tensor(0.1), torch.zeros((), dtype=torch.int32)), "trained")
    with pytest.raises(PhaseError, match=r"grid of 'model.layers.0.mlp.down_proj:act_in' is decided \(trained\)"):
        smooth(q, [batch])
