# SPDX-License-Identifier: Apache-2.0
"""prepare, calibrate, convert: what they leave alone, how often they look, and every way a user can get them wrong."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter, UserDict
from typing import Any

import pytest
import torch
from core_toys import ToyBlock, ToyModel
from torch import Tensor, nn

import pyquant
from pyquant import PerGroup, Policy, QuantSpec, Rule, wrap
from pyquant.errors import CalibrationError, PhaseError, PolicyError
from pyquant.spec import INT4, UINT8
from pyquant.wrap import Phase, QModule, Role

W8A8 = Policy.preset("w8a8")


def prepared(block: ToyBlock, policy: Policy = W8A8) -> QModule:
    return pyquant.prepare(block, policy)


def calibrated(block: ToyBlock, xs: list[Tensor], policy: Policy = W8A8) -> QModule:
    q = prepared(block, policy)
    pyquant.calibrate(q, xs, progress=False)
    return q


# --- the float model ---


def test_the_float_model_is_unchanged_by_everything(model: ToyModel) -> None:
    model.layers[0].train()
    model.layers[1].up.weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    ids = torch.arange(10)
    want = model(ids)
    tensors = dict(model.state_dict(keep_vars=True))
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}

    q = pyquant.prepare(model, W8A8)
    pyquant.calibrate(q, [ids], progress=False)
    pyquant.convert(q)
    q(ids)
    q.train()
    q.to(torch.float16)

    assert torch.equal(model(ids), want)
    assert {k: id(v) for k, v in model.state_dict(keep_vars=True).items()} == {k: id(v) for k, v in tensors.items()}
    for (name, old), (_, new) in zip(twin.named_modules(), model.named_modules(), strict=True):
        assert new.training == old.training, name
        assert set(vars(new)) == attributes[name]
        assert not new._forward_hooks
        assert not new._forward_pre_hooks
    for (name, old), (_, new) in zip(twin.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(old, new), name
        assert new.requires_grad == old.requires_grad
        assert new.grad is None


def test_prepare_gives_an_eval_tree_that_calibrates(block: ToyBlock) -> None:
    q = prepared(block.train())
    assert q.phase is Phase.CALIBRATE
    assert not any(m.training for m in q.modules())
    assert block.training


def test_prepare_takes_a_bare_registered_module() -> None:
    q = pyquant.prepare(nn.Linear(4, 2), W8A8)
    assert [s.path for s in q.all_sites()] == [":act_in", ":weight", ":act_out"]


def test_prepare_scans_each_constant_once_and_calibrate_never(model: ToyModel, calls: Counter[str]) -> None:
    q = pyquant.prepare(model, W8A8)
    constants = [s for s in q.all_sites() if s.role.is_constant]
    assert len(constants) == 2 + 2 * 4
    assert calls == {"observe_minmax_": len(constants)}
    calls.clear()
    pyquant.calibrate(q, [torch.arange(5)] * 3, progress=False)
    activations = [s for s in q.all_sites() if not s.role.is_constant and s.role.known_range is None]
    assert calls == {"observe_minmax_": 3 * len(activations)}


def test_prepare_scans_groups_once(calls: Counter[str]) -> None:
    pyquant.prepare(nn.Linear(8, 4), Policy((Rule("*", Role.WEIGHT, QuantSpec(INT4, True, PerGroup(1, 4))),)))
    assert calls == {"observe_minmax_": 1}


def test_quantized_forward_does_not_quantize_weights_again(
    converted: QModule, xs: list[Tensor], calls: Counter[str]
) -> None:
    converted(xs[0])
    calls.clear()
    converted(xs[1])
    activations = [s for s in converted.all_sites() if not s.role.is_constant]
    assert calls == {"fake_quantize": len(activations)}


def test_nothing_is_quantized_under_the_float_policy(block: ToyBlock, xs: list[Tensor]) -> None:
    q = calibrated(block, xs, Policy.preset("float"))
    pyquant.convert(q)
    torch.testing.assert_close(q(xs[0]), block(xs[0]), rtol=1e-6, atol=1e-6)
    assert all(site.qparams is None for site in q.all_sites())


@pytest.mark.parametrize("preset", ["w8a8", "w8a8_int8", "w8a16", "w4a16", "w4a8"])
def test_every_preset_goes_through(model: ToyModel, preset: str) -> None:
    ids = torch.arange(10)
    q = pyquant.prepare(model, Policy.preset(preset))
    pyquant.calibrate(q, [ids], progress=False)
    pyquant.convert(q)
    assert all(site.qparams is not None for site in q.all_sites())
    error = (q(ids) - model(ids)).abs().mean() / model(ids).abs().mean()
    assert error < (0.3 if preset.startswith("w4") else 0.05)


# --- prepare: mistakes ---


@pytest.mark.parametrize("policy", ["w8a8", None, {}], ids=repr)
def test_prepare_takes_a_policy(policy: Any) -> None:
    with pytest.raises(PolicyError, match=r"prepare takes a Policy such as Policy.preset\('w8a8'\), got "):
        pyquant.prepare(nn.Linear(2, 2), policy)


def test_prepare_twice_is_refused(block: ToyBlock) -> None:
    with pytest.raises(PhaseError, match="got QuantToyBlock, which is already prepared"):
        pyquant.prepare(prepared(block), W8A8)


def test_prepare_takes_a_module() -> None:
    with pytest.raises(PhaseError, match=r"takes a float model \(an nn.Module\), got str"):
        pyquant.prepare("gemma", W8A8)  # type: ignore[arg-type]


def test_unused_rule_names_itself_and_its_neighbours(block: ToyBlock) -> None:
    with pytest.raises(PolicyError, match=r"rule #4 'upp:weight' -> float: nearest sites are .*'up:weight'"):
        prepared(block, W8A8 + Rule("upp:weight"))


# --- calibrate ---


@pytest.mark.parametrize(
    "batch",
    [lambda x: {"x": x}, lambda x: UserDict(x=x), lambda x: (x,), lambda x: [x], lambda x: x],
    ids=["dict", "user-dict", "tuple", "list", "tensor"],
)
def test_a_batch_is_what_forward_takes(block: ToyBlock, xs: list[Tensor], batch: Any) -> None:
    q, want = prepared(block), calibrated(block, xs)
    pyquant.calibrate(q, (batch(x) for x in xs), progress=False)
    for ours, theirs in zip(q.all_sites(), want.all_sites(), strict=True):
        if not ours.role.known_range:
            assert [t.tolist() for t in ours.observer.range()] == [t.tolist() for t in theirs.observer.range()]


def test_calibration_adds_up(block: ToyBlock, xs: list[Tensor]) -> None:
    q, want = prepared(block), calibrated(block, xs)
    pyquant.calibrate(q, xs[:1], progress=False)
    pyquant.calibrate(q, xs[1:], progress=False)
    pyquant.convert(q)
    pyquant.convert(want)
    assert torch.equal(q(xs[0]), want(xs[0]))


def test_calibration_changes_no_batch_and_builds_no_graph(block: ToyBlock, xs: list[Tensor]) -> None:
    before = [x.clone() for x in xs]
    batch = {"x": xs[0]}
    q = prepared(block)
    pyquant.calibrate(q, [batch], progress=False)
    assert list(batch) == ["x"]
    assert all(torch.equal(a, b) for a, b in zip(before, xs, strict=True))
    assert all(not t.requires_grad for s in q.all_sites() if s.observer for t in s.observer.range())


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)], ids=str)
def test_progress_where_there_is_no_terminal(
    block: ToyBlock, xs: list[Tensor], progress: bool | None, shown: bool, capfd: Any
) -> None:
    pyquant.calibrate(prepared(block), xs, progress=progress)
    out, err = capfd.readouterr()
    assert ("calibrate: batch 4 of 4" in err) is shown
    assert out == ""


@pytest.mark.parametrize("batches", [[], (), iter(())], ids=["list", "tuple", "generator"])
def test_no_batches(block: ToyBlock, batches: Any) -> None:
    with pytest.raises(CalibrationError, match="calibrate got no batches: the iterable is empty"):
        pyquant.calibrate(prepared(block), batches, progress=False)


@pytest.mark.parametrize("batches", [torch.ones(2, 8), {"x": torch.ones(2, 8)}, "data"], ids=["tensor", "dict", "str"])
def test_one_batch_instead_of_many(block: ToyBlock, batches: Any) -> None:
    with pytest.raises(CalibrationError, match=r"iterable of batches, got one \w+; pass \[batch\] for a single batch"):
        pyquant.calibrate(prepared(block), batches, progress=False)


def test_weights_that_hold_no_data(block: ToyBlock, xs: list[Tensor]) -> None:
    with pytest.raises(
        CalibrationError, match=r"\d+ weights of the model have no data \(device meta\), the first is '"
    ):
        pyquant.calibrate(prepared(block.to("meta")), xs, progress=False)


@pytest.mark.parametrize("bad", [None, "x", 3], ids=repr)
def test_batch_of_another_type_is_named_by_number(block: ToyBlock, xs: list[Tensor], bad: Any) -> None:
    with pytest.raises(CalibrationError, match=rf"batch 2 is a {type(bad).__name__}; expected a dict of keyword"):
        pyquant.calibrate(prepared(block), [*xs[:2], bad], progress=False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_or_inf_is_named_by_site_and_batch(block: ToyBlock, xs: list[Tensor], value: float) -> None:
    xs[2][1, 3] = value
    with pytest.raises(
        CalibrationError, match=r"batch 2 made NaN or Inf, first at site ':act_in', 'norm:act_out', 'up:act_in'"
    ):
        pyquant.calibrate(prepared(block), xs, progress=False)


def test_first_bad_site_is_the_first_that_the_data_reached(block: ToyBlock, xs: list[Tensor]) -> None:
    """The block's own act_out is built before its children, but the value passes `down` first."""
    q = prepared(block)
    with torch.no_grad():
        block.down.weight[0, 0] = torch.nan
    with pytest.raises(
        CalibrationError, match=r"batch 0 made NaN or Inf, first at site 'down:act_out', ':act_out';"
    ) as caught:
        pyquant.calibrate(q, xs, progress=False)
    assert "; the model itself has NaN or Inf in 'down.weight'; repair the checkpoint" in str(caught.value)
    assert "batch, and" not in str(caught.value)


def test_a_bad_batch_breaks_the_calibration(block: ToyBlock, xs: list[Tensor]) -> None:
    q, bad = prepared(block), xs[1].clone()
    bad[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="batch 1"):
        pyquant.calibrate(q, [xs[0], bad], progress=False)
    for step in (lambda: pyquant.calibrate(q, xs, progress=False), lambda: pyquant.convert(q)):
        with pytest.raises(
            CalibrationError,
            match=r"calibration of this tree is broken: batch 1 made NaN or Inf, first at site ':act_in'.*"
            r"start again from pyquant.prepare",
        ):
            step()


@pytest.mark.parametrize("phase", [Phase.FLOAT, Phase.QUANTIZED], ids=lambda p: p.name)
def test_calibrate_in_another_phase(converted: QModule, xs: list[Tensor], phase: Phase) -> None:
    wrap.set_phase(converted, phase)
    with pytest.raises(PhaseError, match=rf"calibrate before.*in phase {phase.name}, expected CALIBRATE"):
        pyquant.calibrate(converted, xs, progress=False)


def test_calibrate_takes_a_prepared_tree(block: ToyBlock, xs: list[Tensor]) -> None:
    with pytest.raises(
        PhaseError, match=r"calibrate takes the tree that pyquant.prepare\(fp, policy\) returned, got ToyBlock"
    ):
        pyquant.calibrate(block, xs)  # type: ignore[arg-type]


def test_sharded_calibration_merges(block: ToyBlock, xs: list[Tensor]) -> None:
    one, two, both = calibrated(block, xs[:2]), calibrated(block, xs[2:]), calibrated(block, xs)
    for a, b in zip(one.all_sites(), two.all_sites(), strict=True):
        if not a.role.is_constant:
            a.observer.merge(b.observer)
    pyquant.convert(one)
    pyquant.convert(both)
    assert torch.equal(one(xs[0]), both(xs[0]))


# --- convert ---


def test_convert_lists_every_bad_site_with_its_reason(model: ToyModel) -> None:
    q = pyquant.prepare(model, W8A8)
    with torch.no_grad():
        model.layers[1].down.weight.zero_()  # its output is zero everywhere
    q.layers[1].up.site("weight").observer.count[1] = 7
    x = torch.zeros(2, 8)
    q.layers[1](x + 1)
    with pytest.raises(CalibrationError) as caught:
        pyquant.convert(q)
    lines = str(caught.value).splitlines()
    total = sum(site.spec is not None for site in q.all_sites())
    bad = {line.split(":", 2)[0].strip() + ":" + line.split(":", 2)[1]: line for line in lines[1:]}
    assert lines[0] == f"convert: {len(bad)} of {total} sites have no usable range"
    assert "saw no calibration data" in bad["embed:act_out"]
    assert "saw only zeros" in bad["layers.1.down:act_out"]
    assert "its constant has 7 NaN" in bad["layers.1.up:weight"]
    assert "layers.1.up:act_in" not in bad
    assert "layers.0:probs" not in bad  # known a priori
    assert "head:weight" not in bad  # scanned


def test_convert_is_all_or_nothing(block: ToyBlock, xs: list[Tensor]) -> None:
    q = prepared(block)
    with pytest.raises(CalibrationError, match="saw no calibration data"):
        pyquant.convert(q)
    assert q.phase is Phase.CALIBRATE
    assert all(site.scale is None for site in q.all_sites())
    pyquant.calibrate(q, xs, progress=False)
    pyquant.convert(q)
    assert q.phase is Phase.QUANTIZED


def test_convert_twice(converted: QModule) -> None:
    with pytest.raises(PhaseError, match="convert was already done for this tree; prepare the float model again"):
        pyquant.convert(converted)


def test_convert_before_prepare(block: ToyBlock) -> None:
    with pytest.raises(
        PhaseError, match=r"convert takes the tree that pyquant.prepare\(fp, policy\) returned, got ToyBlock"
    ):
        pyquant.convert(block)  # type: ignore[arg-type]


def test_convert_of_a_part(block: ToyBlock, xs: list[Tensor]) -> None:
    with pytest.raises(PhaseError, match="convert takes the tree that prepare returned, got its part 'up'"):
        pyquant.convert(calibrated(block, xs).up)


def test_convert_in_float_phase(block: ToyBlock, xs: list[Tensor]) -> None:
    q = calibrated(block, xs)
    with wrap.phase(q, Phase.FLOAT), pytest.raises(PhaseError, match="in phase FLOAT, expected CALIBRATE"):
        pyquant.convert(q)


@pytest.mark.parametrize(
    "unused", ["layers.1*", ["layers.1*"], ("layers.1:*", "layers.1.*")], ids=["str", "list", "two"]
)
def test_declared_unused_sites_stay_float(model: ToyModel, unused: Any) -> None:
    q = pyquant.prepare(model, W8A8)
    x = q.layers[0](q.embed(torch.arange(10)))
    q.head(x)
    pyquant.convert(q, unused=unused)
    assert {s.path.split(":")[0].split(".")[0:2][-1] for s in q.all_sites() if s.scale is None} == {"1"}
    q(torch.arange(3))


def test_unused_that_matches_nothing_is_refused(block: ToyBlock, xs: list[Tensor]) -> None:
    with pytest.raises(CalibrationError, match=r"convert\(unused=...\): 'past_\*' matches no site"):
        pyquant.convert(calibrated(block, xs), unused=["past_*"])


def test_weights_edited_between_prepare_and_convert_are_scanned_again(block: ToyBlock, xs: list[Tensor]) -> None:
    q = calibrated(block, xs)
    with torch.no_grad():
        block.up.weight.mul_(4)
    pyquant.convert(q)
    want = calibrated(block, xs)
    pyquant.convert(want)
    assert torch.equal(q.up.site("weight").scale, want.up.site("weight").scale)


def test_global_state_is_left_alone(block: ToyBlock, xs: list[Tensor]) -> None:
    torch.manual_seed(3)
    state, python, grad = torch.get_rng_state(), random.getstate(), torch.is_grad_enabled()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    pyquant.convert(calibrated(block, xs))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert torch.is_grad_enabled() is grad
    assert torch.__future__.get_overwrite_module_params_on_conversion() is overwrite


def test_bf16_model_goes_through(xs: list[Tensor]) -> None:
    block = ToyBlock().bfloat16()
    data = [x.bfloat16() for x in xs]
    q = calibrated(block, data)  # type: ignore[arg-type]
    pyquant.convert(q)
    assert q(data[0]).dtype == torch.bfloat16
    assert all(s.scale.dtype == torch.float32 for s in q.all_sites() if s.scale is not None)


@pytest.mark.parametrize(
    ("width", "size", "message"),
    [
        (576, 128, "sizes that do are 64, 72, 96, 144, 192, 288$"),
        (12, 5, "sizes that do are 2, 3, 4, 6$"),
        (13, 4, "nothing but 1 and 13 does: use PerAxis$"),
    ],
)
def test_a_group_that_does_not_divide_names_the_sizes_that_do(width: int, size: int, message: str) -> None:
    policy = Policy((Rule("*", Role.WEIGHT, QuantSpec(INT4, True, PerGroup(-1, size))),))
    fp = nn.Linear(width, 4)
    with pytest.raises(PolicyError, match=r"site ':weight' cannot have its format") as caught:
        pyquant.prepare(fp, policy)
    problem = str(caught.value).split("; give it")[0]
    assert re.search(message, problem), problem
    for fitting in [int(n) for n in re.findall(r"\d+", problem.partition("do are")[2])]:
        pyquant.prepare(fp, Policy((Rule("*", Role.WEIGHT, QuantSpec(INT4, True, PerGroup(-1, fitting))),)))


def test_per_group_axis_must_divide_names_the_site() -> None:
    policy = Policy(
        (Rule("*", Role.WEIGHT, QuantSpec(INT4, True, PerGroup(1, 5))), Rule("*", Role.ACTIVATION, QuantSpec(UINT8)))
    )
    with pytest.raises(PolicyError, match=r"site ':weight'.*the group size must divide dimension 1 of \(4, 8\)"):
        pyquant.prepare(nn.Linear(8, 4), policy)
