# SPDX-License-Identifier: Apache-2.0
"""Gemma4's router and experts: float = transformers in each of its implementations; quantized, dense and gathered, in
eager and in the file; and experts that calibration did not reach."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts, Gemma4TextRouter

import pyquant
from pyquant import Policy
from pyquant.batch import tensors_in
from pyquant.errors import ExportError, InputError, ProfileError
from pyquant.exporter.profile import ExportProfile, TensorSpec
from pyquant.lifecycle import CalibrationWarning
from pyquant.metrics import sqnr_db
from pyquant.models.example import randomize_
from pyquant.models.gemma4 import ExpertsProfile
from pyquant.policy import Rule
from pyquant.role import Role
from pyquant.spec import INT4, INT8, PerGroup, PerTensor, QuantSpec
from pyquant.verify.runtimes import onert
from pyquant.verify.tolerance import fidelity
from pyquant.wrap import Phase, phase

torch.set_num_threads(1)

HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 13)
SIZES = ((4, 1), (4, 2), (16, 8))
every_size = pytest.mark.parametrize(("experts", "top_k"), SIZES, ids=[f"top{k}-of-{e}" for e, k in SIZES])
every_recipe = pytest.mark.parametrize("recipe", ["w8a8", "w8a16", "w4a16"])
HIDDEN, TOKENS = 32, 48


def config(experts: int = 4, top_k: int = 2, implementation: str = "eager") -> Any:
    made = Gemma4TextConfig(
        hidden_size=HIDDEN,
        moe_intermediate_size=24,
        num_experts=experts,
        top_k_experts=top_k,
        enable_moe_block=True,
        num_hidden_layers=1,
        layer_types=["full_attention"],
    )
    made._experts_implementation = implementation
    return made


def router(experts: int = 4, top_k: int = 2) -> Gemma4TextRouter:
    return randomize_(Gemma4TextRouter(config(experts, top_k))).eval()


def mixture(experts: int = 4, top_k: int = 2, implementation: str = "eager") -> Gemma4TextExperts:
    return randomize_(Gemma4TextExperts(config(experts, top_k, implementation))).eval()


def tokens(count: int = TOKENS) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def chosen(experts: int = 4, top_k: int = 2, count: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of the experts: tokens, and what a router chose for them."""
    x = tokens(count)
    _, weights, index = router(experts, top_k)(x)
    return x, index, weights


def converted(fp: nn.Module, batch: Any, policy: Policy | str) -> Any:
    q = pyquant.prepare(fp, Policy.preset(policy) if isinstance(policy, str) else policy)
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return q


def near(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    return float((got.double() - wanted.double()).abs().max()) <= tolerance * float(wanted.double().abs().max())


# --- float ---


@every_size
@torch.no_grad()
def test_router_is_transformers_router(experts: int, top_k: int) -> None:
    fp = router(experts, top_k)
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    assert float(fp.per_expert_scale.std()) > 0.05
    for where in (Phase.FLOAT, Phase.CALIBRATE):
        with phase(q, where):
            for got, wanted in zip(q(tokens()), fp(tokens()), strict=True):
                assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
                assert near(got, wanted)
            assert torch.equal(q(tokens())[2], fp(tokens())[2])


@torch.no_grad()
def test_a_tie_goes_where_transformers_sends_it_and_on_the_grid_to_the_lower_number() -> None:
    fp = router(16, 3)
    fp.proj.weight[8:] = fp.proj.weight[:8]  # each expert has a twin
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    assert torch.equal(q(tokens())[2], fp(tokens())[2])
    pyquant.calibrate(q, [tokens()], progress=False)
    pyquant.convert(q)
    index = q(tokens())[2]
    assert bool((index[:, 1] >= index[:, 0] + 8).all()), "its twin is second"
    assert torch.equal(index[:, 1], index[:, 0] + 8)
    assert bool((index[:, 2] < 8).all()), "the third has a twin that is left out"
    program = pyquant.export(q, router_profile(TOKENS))
    assert fidelity(program, None, [tokens()]).max_lsb == 0


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@every_size
@torch.no_grad()
def test_experts_are_transformers_experts(experts: int, top_k: int, implementation: str) -> None:
    fp = mixture(experts, top_k, implementation)
    arguments = chosen(experts, top_k)
    expected = fp(*arguments)
    q = pyquant.prepare(fp, Policy.preset("w8a8"))
    for where in (Phase.FLOAT, Phase.CALIBRATE):
        with phase(q, where):
            for dispatch in (None, "dense", "gather"):
                assert near(q(*arguments, dispatch=dispatch), expected), dispatch
    pyquant.calibrate(q, [arguments], progress=False)
    pyquant.convert(q)
    with phase(q, Phase.FLOAT):  # with the grids there: products of steps, and then their size
        assert near(q(*arguments), expected)


@torch.no_grad()
def test_bfloat16() -> None:
    gate, experts = router(16, 8).bfloat16(), mixture(16, 8).bfloat16()
    x = tokens().bfloat16()
    q_gate, q_experts = (pyquant.prepare(fp, Policy.preset("w8a16")) for fp in (gate, experts))
    probabilities, weights, index = gate(x)
    for got, wanted in zip(q_gate(x), (probabilities, weights, index), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    got = q_experts(x, index, weights)
    assert got.dtype == torch.bfloat16
    assert near(got, experts(x, index, weights), 0.02)


@torch.no_grad()
def test_weights_that_are_edited_after_prepare_count() -> None:
    fp, gate, arguments = mixture(), router(), chosen()
    q, q_gate = (pyquant.prepare(each, Policy.preset("w8a16")) for each in (fp, gate))
    fp.down_proj.mul_(3.0)
    gate.scale.mul_(0.5)
    assert near(q(*arguments), fp(*arguments))
    assert near(q_gate(tokens())[1], gate(tokens())[1])
    pyquant.calibrate(q, [arguments], progress=False)
    pyquant.convert(q)
    assert sqnr_db(fp(*arguments), q(*arguments)) > 35


# --- quantized ---


@every_recipe
@every_size
@torch.no_grad()
def test_each_row_of_each_expert_has_a_scale_of_its_own(experts: int, top_k: int, recipe: str) -> None:
    fp = mixture(experts, top_k)
    fp.gate_up_proj[1] *= 8
    q = converted(fp, chosen(experts, top_k), recipe)
    for name in ("gate_up_proj", "down_proj"):
        site, stack = getattr(q, name).site("weight"), getattr(fp, name)
        assert site.scale.shape == (stack.shape[0] * stack.shape[1],)
        rows = stack.flatten(0, 1)
        on_grid = getattr(q, name).const("weight", getattr(q, name).weight)
        assert bool(((on_grid - rows).abs() <= site.scale[:, None] * 0.5001).all())
        width = rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)
        least = width / 255 if recipe == "w8a8" else rows.abs().amax(1) / (127 if recipe == "w8a16" else 7)
        assert bool(((site.scale - least).abs() <= 1e-6 * least).all())


@every_recipe
@every_size
@torch.no_grad()
def test_dense_gather_and_the_loop_are_one_arithmetic(experts: int, top_k: int, recipe: str) -> None:
    fp, arguments = mixture(experts, top_k), chosen(experts, top_k)
    q = converted(fp, arguments, recipe)
    loop = q(*arguments)
    assert sqnr_db(fp(*arguments), loop) > {"w8a8": 24, "w8a16": 38, "w4a16": 13}[recipe]
    step = float(q.site("act_out").scale)
    for dispatch in ("dense", "gather"):
        other = q(*arguments, dispatch=dispatch)
        assert int((other != loop).sum()) <= 0.005 * loop.numel()
        assert float((other - loop).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("dispatch", ["dense", "gather"])
@every_recipe
@every_size
def test_the_file_computes_what_eager_computes(experts: int, top_k: int, recipe: str, dispatch: Any) -> None:
    arguments = chosen(experts, top_k)
    q = converted(mixture(experts, top_k), arguments, recipe)
    for count in (1, 6):
        program = pyquant.export(q, ExpertsProfile(count, dispatch))
        assert program.missing_qparams() == []
        given = [each[:count] for each in arguments]
        fidelity(program, None, given, reference=None if recipe == "w8a8" else floats(q, given))
        used = {op.op for op in program.graph.operators}
        assert ("GATHER" in used) == (dispatch == "gather")
        stored = {
            t.dtype for t in program.graph.tensors if t.constant is not None and torch.Size(t.shape).numel() > 2000
        }
        assert stored == {{"w8a8": "int16", "w8a16": "int8", "w4a16": "int4"}[recipe]}


@torch.no_grad()
def floats(q: Any, given: list[Tensor]) -> dict[str, Tensor]:
    """A flip of one of 65,536 steps reaches the next product; what counts is how little that is of the whole error."""
    with phase(q, Phase.FLOAT):
        return {"hidden_states_out": q(*given)}


@every_recipe
@every_size
def test_the_routers_file_computes_what_eager_computes(experts: int, top_k: int, recipe: str) -> None:
    q = converted(router(experts, top_k), tokens(), recipe)
    for count in (1, TOKENS):
        program = pyquant.export(q, router_profile(count))
        assert program.missing_qparams() == []
        report = fidelity(program, None, [tokens(count)])
        assert next(out for out in report.outputs if out.name == "index").unequal == 0


def router_profile(count: int) -> ExportProfile:
    return ExportProfile({"hidden_states": TensorSpec((count, HIDDEN))}, ("probabilities", "weights", "index"))


@torch.no_grad()
def test_without_an_order_a_graph_gathers_where_that_reads_less() -> None:
    q = converted(mixture(16, 8), chosen(16, 8), "w8a16")
    used = [{op.op for op in pyquant.export(q, ExpertsProfile(count)).graph.operators} for count in (1, 2)]
    assert ["GATHER" in ops for ops in used] == [True, False]


@pytest.mark.skipif(not HAS_WHEEL, reason="onert 0.1.0 has no wheel for this Python or platform")
@every_size
@torch.no_grad()
def test_float_files_on_onert_compute_what_transformers_computes(experts: int, top_k: int) -> None:
    x, index, weights = chosen(experts, top_k, count=3)
    fp, policy = router(experts, top_k), Policy.preset("float")
    q = pyquant.prepare(fp, policy)
    pyquant.convert(q)
    got = onert.run(pyquant.export(q, router_profile(3), target="onert"), [x])
    assert all(near(got[name], value) for name, value in zip(("probabilities", "weights"), fp(x), strict=False))
    assert torch.equal(got["index"], index)
    q = pyquant.prepare(mixture(experts, top_k), policy)
    pyquant.convert(q)
    for dispatch in ("dense", "gather"):
        program = pyquant.export(q, ExpertsProfile(3, dispatch), target="onert")
        (out,) = onert.run(program, [x, index, weights]).values()
        assert near(out, mixture(experts, top_k)(x, index, weights))


def with_weights(spec: QuantSpec) -> Policy:
    return Policy((*Policy.preset("w8a16").rules, Rule("*", Role.WEIGHT, spec)))


@torch.no_grad()
def test_weights_of_one_scale_need_no_steps_of_their_own() -> None:
    arguments = chosen()
    q = converted(mixture(), arguments, with_weights(QuantSpec(INT8, symmetric=True, granularity=PerTensor())))
    assert "product" not in q.gate_up_proj.sites
    assert sqnr_db(mixture()(*arguments), q(*arguments)) > 35
    for dispatch in ("dense", "gather"):
        program = pyquant.export(q, ExpertsProfile(2, dispatch))
        assert program.missing_qparams() == []
        fidelity(program, None, [each[:2] for each in arguments])


@torch.no_grad()
def test_groups_are_along_the_inputs_and_no_file_holds_them() -> None:
    arguments = chosen()
    q = converted(mixture(), arguments, with_weights(QuantSpec(INT4, symmetric=True, granularity=PerGroup(1, 8))))
    assert q.gate_up_proj.site("weight").scale.shape == (4 * 48, HIDDEN // 8)
    assert sqnr_db(mixture()(*arguments), q(*arguments)) > 16
    with pytest.raises(ExportError, match=r"gate_up_proj:weight' is quantized in groups of 8.*PerAxis\(0\)"):
        pyquant.export(q, ExpertsProfile(1, "gather"))


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Any) -> None:
    fp = mixture()
    for number, (module, arguments) in enumerate(((router(), (tokens(),)), (fp, chosen()))):
        q = converted(module, arguments, "w4a16")
        pyquant.save_quantized(q, tmp_path / str(number))
        again = pyquant.load_quantized(tmp_path / str(number), type(module)(module.config))
        for got, wanted in zip(tensors_in(again(*arguments)), tensors_in(q(*arguments)), strict=True):
            assert torch.equal(got, wanted)
    (weights,) = (tmp_path / "1").glob("*.safetensors")
    assert weights.stat().st_size < 1.25 * sum(p.numel() for p in fp.parameters()), "4-bit integers and their scales"


# --- calibration ---


def without_expert(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens for which top-2 of 4 never chose the expert `number`."""
    x, index, weights = chosen(count=300)
    keep = (index != number).all(dim=1)
    assert 60 < int(keep.sum()) < 300
    return x[keep], index[keep], weights[keep]


@torch.no_grad()
def test_top_2_of_4_with_one_expert_unseen() -> None:
    fp, seen = mixture(), without_expert(2)
    q = pyquant.prepare(fp, Policy.preset("w8a16"))
    pyquant.calibrate(q, [seen], progress=False)
    message = r"experts 2 of 4 saw no calibration data; they share the grids .* calibrate with more data"
    with pytest.warns(CalibrationWarning, match=message):
        pyquant.convert(q)
    assert q.rows_seen.tolist()[2] == 0
    assert int(q.rows_seen.sum()) == 2 * len(seen[0])
    x, index, weights = chosen(count=300)
    assert sqnr_db(fp(x, index, weights), q(x, index, weights)) > 25, (
        "its weights have grids, its values those of others"
    )
    for dispatch in ("dense", "gather"):
        program = pyquant.export(q, ExpertsProfile(2, dispatch))
        own = index[(index == 2).any(dim=1)]
        fidelity(program, None, [x[:2], own[:2].contiguous(), weights[:2]])


@torch.no_grad()
def test_an_expert_with_few_rows_is_logged_by_name(caplog: pytest.LogCaptureFixture) -> None:
    x, index, weights = chosen(count=300)
    few = (index == 2).any(dim=1)
    keep = ~few
    keep[few.nonzero()[:5, 0]] = True
    q = pyquant.prepare(mixture(), Policy.preset("w8a16"))
    with caplog.at_level(logging.WARNING, "pyquant"), warnings.catch_warnings():
        warnings.simplefilter("error")
        pyquant.calibrate(q, [(x[keep], index[keep], weights[keep])], progress=False)
        assert [record for record in caplog.records if record.name.startswith("pyquant")] == []
        pyquant.convert(q)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("pyquant")]
    assert "experts 2 (5 rows) of 4 saw fewer than 32 rows" in message
    assert "calibrate with more data" in message


# --- hostile input ---


def test_what_is_no_profile_and_no_expert() -> None:
    q = converted(mixture(), chosen(), "w8a16")
    with pytest.raises(ProfileError, match="dispatch is one of dense, gather or None, got 'sparse'"):
        ExpertsProfile(1, "sparse")  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="tokens is a positive integer, got 0"):
        ExpertsProfile(0)
    with pytest.raises(ProfileError, match="ExpertsProfile"):
        q.as_export_module(ExportProfile({"hidden_states": TensorSpec((1, HIDDEN))}))
    fresh = pyquant.prepare(mixture(), Policy.preset("w8a16"))
    x, index, weights = chosen()
    with pytest.raises(InputError, match="experts 0 to 3, got top_k_index"):
        fresh(x, index + 3, weights)


@torch.no_grad()
def test_a_copy_moves_and_casts() -> None:
    fp, arguments = mixture(), chosen()
    q = converted(fp, arguments, "w8a16")
    again = copy.deepcopy(q)
    assert torch.equal(again(*arguments), q(*arguments))
    half = copy.deepcopy(q).bfloat16()
    assert half(*(each.bfloat16() if each.is_floating_point() else each for each in arguments)).dtype == torch.bfloat16
    assert fp.gate_up_proj.dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["gptq", "range_search"])
def test_an_algorithm_names_the_experts_that_no_data_reached_and_rounds_them_to_the_nearest(algorithm: str) -> None:
    """Expert 3 gets no row: its integers are the nearest ones; the others' are chosen by their own rows."""
    fp = mixture(4, 2)
    x, weights, _ = chosen(4, 2, 64)
    index = torch.stack([torch.arange(64) % 3, (torch.arange(64) + 1) % 3], dim=1)
    q = pyquant.prepare(fp, Policy.preset("w4a16"))
    decisions = getattr(pyquant.algorithms, algorithm)(q, [(x, index, weights)], progress=False)
    assert [decision.note for decision in decisions] == ["experts 3 saw no data: nearest integers"] * 2
    assert [decision.rows for decision in decisions] == [128, 128]
    for stacked, own in ((q.gate_up_proj, fp.gate_up_proj), (q.down_proj, fp.down_proj)):
        scale = stacked.site("weight").scale.view(4, -1, 1)
        nearest = (own / scale).round().clamp(-7, 7) * scale
        values = stacked.weight.detach().view_as(own)
        assert torch.allclose(values[3], nearest[3], atol=1e-6)
        assert torch.allclose(values, nearest, atol=1e-6) == (algorithm == "range_search")


@pytest.mark.parametrize("algorithm", ["gptq", "range_search"])
def test_experts_with_one_scale_share_their_grid(algorithm: str) -> None:
    fp = mixture(4, 2)
    fp.gate_up_proj.data[1] *= 3  # an expert whose own range is another
    policy = Policy.preset("w4a16").with_rule(Rule("*", Role.WEIGHT, QuantSpec(INT4, symmetric=True)))
    q = pyquant.prepare(fp, policy)
    getattr(pyquant.algorithms, algorithm)(q, [chosen(4, 2, 64)], progress=False)
    for stacked, own in ((q.gate_up_proj, fp.gate_up_proj), (q.down_proj, fp.down_proj)):
        off = (stacked.weight.detach().view_as(own) - own.detach()).abs()
        assert float(off.mean()) < 0.6 * float(stacked.site("weight").scale)
