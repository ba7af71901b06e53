# SPDX-License-Identifier: Apache-2.0
"""auto16: 16 bits go where rounding costs most, within the budget, and the choice is saved with the tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyquant
from pyquant import ops
from pyquant.algorithms.auto16 import WIDE, auto16
from pyquant.algorithms.impact import Impact, Impacts, candidates
from pyquant.errors import CalibrationError, InputError, PhaseError, PolicyError
from pyquant.models import llama as llama_family
from pyquant.models.llama import example as llama
from pyquant.qparams import QParams
from pyquant.role import Role
from pyquant.spec import INT8, INT16, UINT8, PerAxis, QuantSpec
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import op_faults
from pyquant.weight import weights
from pyquant.wrap import Phase, QModule, phase

torch.set_num_threads(1)
OUTLIER = "model.layers.1.mlp.down_proj:act_in"
Q8 = QuantSpec(UINT8)
W_FLOAT = pyquant.Policy((pyquant.Rule("*", Role.ACTIVATION, Q8), pyquant.Rule("*", Role.CONSTANT, Q8, optional=True)))


def outlier() -> tuple[nn.Module, list[Any]]:
    """A model in which one channel between up_proj and down_proj is 2,000 times as large, and the output the same."""
    fp: Any = llama.tiny_model()
    with torch.no_grad():
        fp.model.layers[1].mlp.up_proj.weight[5] *= 2000
        fp.model.layers[1].mlp.down_proj.weight[:, 5] /= 2000
    generator = torch.Generator().manual_seed(0)
    return fp, [{"input_ids": torch.randint(0, 256, (2, 12), generator=generator)} for _ in range(4)]


def calibrated(preset: str = "w8a8") -> tuple[Any, list[Any]]:
    fp, batches = outlier()
    q = pyquant.prepare(fp, pyquant.Policy.preset(preset))
    pyquant.calibrate(q, batches)
    return q, batches


def wide(q: QModule) -> set[str]:
    return {site.path for site in q.all_sites() if site.spec == WIDE}


def test_the_tensor_with_the_outlier_is_first() -> None:
    q, batches = calibrated()
    before = {p: v.clone() for p, v in q.named_parameters()}
    result = auto16(q, batches, loss=0.0, share=0.07)
    assert {OUTLIER, "model.layers.1.mlp:gated"} <= wide(q) == set(result.paths)
    assert "model.layers.0.mlp:gated" not in wide(q)
    assert result.share <= 0.07
    assert result.after < result.before / 5
    assert all(torch.equal(v, before[p]) and v.grad is None for p, v in q.named_parameters())
    assert {d.path for d in q.state.log if d.bits == 16} == wide(q)


def test_what_is_expected_is_what_is_measured() -> None:
    """The divergence of the quantized model from the float one, with activations rounded alone."""
    fp, (_, batches) = llama.tiny_model(), outlier()
    q = pyquant.prepare(fp, W_FLOAT)
    pyquant.calibrate(q, batches)
    expected = auto16(q, batches * 4, loss=0.0, share=0.0, ranges=False).after
    pyquant.convert(q)
    measured, rows = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            p, other = (model(**batch).logits.double().log_softmax(-1) for model in (fp, q))
            measured += float((p.exp() * (p - other)).sum())
            rows += p.shape[0] * p.shape[1]
    assert measured / rows == pytest.approx(expected, rel=0.5)


def test_no_more_than_the_loss_asks_for() -> None:
    q, batches = calibrated()
    none = auto16(q, batches, loss=1.0, ranges=True)
    assert none.paths == () == tuple(wide(q))
    assert none.share == 0
    assert none.after < none.before  # the ranges
    few = auto16(calibrated()[0], batches, loss=none.after / 2, share=1.0, ranges=True)
    most = auto16(calibrated()[0], batches, loss=none.after / 5, share=1.0, ranges=True)
    assert 0 < few.share < most.share
    assert few.after <= none.after / 2
    assert most.after <= none.after / 5


def test_sites_of_one_tensor_have_one_grid() -> None:
    q, batches = calibrated()
    auto16(q, batches, loss=0.0, share=0.2)
    pyquant.convert(q)
    sites = {site.path: site for site in q.all_sites()}
    for i in range(2):
        same = [f"model.layers.{i}.self_attn.core:attn_out", f"model.layers.{i}.self_attn.o_proj:act_in"]
        same += [f"model.layers.{i}.mlp:gated", f"model.layers.{i}.mlp.down_proj:act_in"]
        for one, two in zip(same[::2], same[1::2], strict=True):
            assert sites[one].qparams.same_grid(sites[two].qparams), one


def test_ranges_are_left_alone_without_ranges() -> None:
    q, batches = calibrated()
    before = {s.path: s.compute_qparams() for s in q.all_sites() if s.observer is not None}
    auto16(q, batches, loss=0.0, share=0.1, ranges=False)
    pyquant.convert(q)
    for site in q.all_sites():
        old = before.get(site.path)
        if isinstance(old, QParams) and site.spec == old.spec:
            assert site.qparams is not None
            assert site.qparams.same_grid(old), site.path


def test_weights_beside_16_bits_are_symmetric() -> None:
    q, batches = calibrated()
    auto16(q, batches, loss=0.0, share=0.07)
    chosen = {w.path: w for w in weights(q)}
    weight = chosen["model.layers.1.mlp.down_proj:weight"]
    assert weight.spec == QuantSpec(INT8, symmetric=True, granularity=PerAxis(0))
    assert weight.open  # a format is no decision
    other = chosen["model.layers.0.mlp.down_proj:weight"]
    assert other.spec == QuantSpec(UINT8, granularity=PerAxis(0))
    pyquant.convert(q)
    assert weight.site.scale is not None
    expected = weight.value.abs().amax(1) / 127
    assert torch.equal(weight.site.scale, expected)


def test_the_choice_is_saved(tmp_path: Path) -> None:
    q, batches = calibrated()
    auto16(q, batches, loss=0.0, share=0.1)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q")
    assert wide(loaded) == wide(q)
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, q(**batches[0]).logits)


def test_outputs_that_are_no_logits_and_padding() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    fp = nn.Linear(8, 8)
    q = pyquant.prepare(fp, W_FLOAT)
    pyquant.calibrate(q, [x])
    result = auto16(q, [x] * 20, loss=0.0, share=0.0)
    pyquant.convert(q)
    with torch.no_grad():
        y = fp(x)
        measured = float((q(x) - y).square().mean() / y.var(correction=0)) / 2
    assert result.after == pytest.approx(measured, rel=0.3)

    q, batches = calibrated()
    sites = [site for site in q.all_sites() if site.path == "lm_head:act_in"]
    impacts = Impacts(q, sites)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 5:] = 0
    impacts.measure([{**batches[0], "attention_mask": mask}])
    assert impacts.rows == 17


def test_the_loss_of_a_grid() -> None:
    """Against rounding the values themselves."""
    generator = torch.Generator().manual_seed(1)
    x, g = (torch.randn(5000, generator=generator) for _ in range(2))
    q = pyquant.prepare(nn.Linear(4, 4), pyquant.Policy.preset("w8a8"))
    impact = Impact([next(q.all_sites())])
    impact.see(x[:3000], g[:3000])
    impact.see(x[3000:], g[3000:])
    grids = candidates([-5.0, -1.0], [5.0, 2.0], 255)
    for low, high, expected in zip(grids.low, grids.high, impact.loss(grids), strict=True):
        scale, zero = ops.choose_qparams(low.float(), high.float(), 0, 255, False)
        error = ops.fake_quantize(x, scale, zero, None, 0, 0, 255) - x
        assert float(expected) == pytest.approx(float((g * error).double().square().sum() / 2), rel=0.1)
    assert (impact.low, impact.high, impact.elements) == (float(x.min()), float(x.max()), 5000)


def test_reformat_keeps_what_was_observed() -> None:
    q, _ = calibrated()
    site = next(s for s in q.all_sites() if s.path == OUTLIER)
    assert site.observer is not None
    low, high = site.observer.range()
    site.reformat(WIDE, "me")
    assert site.decided == "me"
    grid = site.compute_qparams()
    assert isinstance(grid, QParams)
    assert grid.spec == WIDE
    assert float(grid.scale) == pytest.approx(float(torch.maximum(-low, high)) / 32767)
    probs = next(s for s in q.all_sites() if s.path.endswith("core:probs"))
    probs.reformat(WIDE, "me")
    fixed = probs.compute_qparams()
    assert isinstance(fixed, QParams)
    assert float(fixed.scale) == pytest.approx(1 / 32767)
    with pytest.raises(PolicyError, match="statistics of"):
        site.reformat(QuantSpec(INT8, symmetric=True, granularity=PerAxis(0)), "me")
    pyquant.convert(q)
    assert site.spec == WIDE
    with pytest.raises(PhaseError, match="converted"):
        site.reformat(Q8, "me")


def test_reformat_is_refused() -> None:
    q, _ = calibrated()
    site = next(s for s in q.all_sites() if s.path == OUTLIER)
    grid = site.compute_qparams()
    assert isinstance(grid, QParams)
    site.decide(grid, "by hand")
    with pytest.raises(PhaseError, match=r"decided \(by hand\)"):
        site.reformat(WIDE, "me")
    float_tree = pyquant.prepare(llama.tiny_model(), pyquant.Policy.preset("float"))
    with pytest.raises(PolicyError, match="float by the policy"):
        next(float_tree.all_sites()).reformat(QuantSpec(INT16, symmetric=True), "me")


def test_bad_input() -> None:
    q, batches = calibrated()
    with pytest.raises(InputError, match="share between 0 and 1"):
        auto16(q, batches, share=1.5)
    with pytest.raises(CalibrationError, match="no batches"):
        auto16(q, [])
    fresh = pyquant.prepare(llama.tiny_model(), pyquant.Policy.preset("w8a8"))
    with pytest.raises(InputError, match=r"run pyquant\.calibrate first"):
        auto16(fresh, batches)
    pyquant.convert(q)
    with pytest.raises(PhaseError):
        auto16(q, batches)


def test_what_is_decided_stays() -> None:
    q, batches = calibrated()
    for site in q.all_sites():
        if site.path in (OUTLIER, "model.layers.1.mlp:gated"):
            grid = site.compute_qparams()
            assert isinstance(grid, QParams)
            site.decide(grid, "by hand")
    auto16(q, batches, loss=0.0, share=0.1)
    assert OUTLIER not in wide(q)
    with phase(q, Phase.FLOAT), torch.no_grad():
        out: Tensor = q(**batches[0]).logits
    assert bool(out.isfinite().all())


KV8 = [pyquant.Rule(f"*:{name}", Role.ACTIVATION, QuantSpec(INT8, symmetric=True)) for name in ("key", "value")]


@pytest.mark.parametrize("kind", ["auto16", "kv8"])
def test_the_files_are_the_simulation(kind: str, tmp_path: Path) -> None:
    """16 bits beside 8, and an 8-bit cache within 16 bits: each operator of each file, and what is generated."""
    fp, batches = outlier()
    policy = pyquant.Policy.preset("w8a8") if kind == "auto16" else pyquant.Policy.preset("w8a16").with_rule(*KV8)
    q: Any = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, batches)
    if kind == "auto16":
        auto16(q, batches, loss=0.0, share=0.3)
    pyquant.convert(q)
    programs = pyquant.export_bundle(q, tmp_path / "b", llama_family.Profile(max_seq_len=16, prefill_lengths=(12,)))
    seen: dict[str, dict[str, Tensor]] = {}
    with Session(tmp_path / "b", runtime="tico") as session:

        def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            seen[name] = inputs
            return session.run(name, inputs)

        prompt = batches[0]["input_ids"][:1]
        tokens = session.host.generate(run, prompt, max_new_tokens=3)
    assert torch.equal(tokens, q.generate(prompt, max_new_tokens=3, do_sample=False))
    for name, inputs in seen.items():
        assert programs[name].missing_qparams() == []
        assert op_faults(compare(programs[name], None, inputs)) == [], name
    kinds = {t.quant.dtype for p in programs.values() for t in p.graph.tensors if t.quant is not None}
    assert {"int8", "int16"} <= kinds
