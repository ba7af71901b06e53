# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: what is measured is what a hand-made switch measures, the tree is left alone, and the mixed policy wins.

The figures of the last tests are of the trained digits classifier, on images that were held out of everything.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import random

import pytest
import torch
from torch import nn

import pyquant
from examples.digits import data, model, quant  # noqa: F401
from pyquant import Recipe, Step, algorithms, reporter
from pyquant.errors import InputError, PhaseError, PolicyError
from pyquant.models import gemma4
from pyquant.policy import Policy, Rule
from pyquant.sensitivity import Sensitivity
from pyquant.spec import BlockSpec, IntType, PerAxis, QuantSpec
from pyquant.trace import sensitivity
from pyquant.verify import peir, sqnr_db
from pyquant.verify.tolerance import op_faults
from pyquant.wrap import Phase, QModule, Role, phase

torch.set_num_threads(1)


class Net(nn.Module):
    """Two linears with a residual: x is read by `first` and by the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.second(x + self.first(x))


@pyquant.register(Net)
class QuantNet(QModule):
    CHILDREN = ("first", "second")
    SITES = {"x": Role.ACTIVATION, "sum": Role.ACTIVATION}

    def forward(self, x):
        x = self.q("x", x)
        return self.second(self.q("sum", x + self.first(x)))


def net(policy: str = "w8a8") -> tuple[QModule, list[torch.Tensor]]:
    torch.manual_seed(3)
    batches = [torch.randn(5, 8), torch.randn(6, 8)]
    q = pyquant.prepare(Net().eval(), Policy.preset(policy))
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    return q, batches


def only(q: QModule, batches: list[torch.Tensor], *paths: str) -> torch.Tensor:
    """The output of a tree whose policy quantizes nothing but `paths`."""
    chosen = [(site, q.policy.choose(site.path, site.role).rule) for site in q.all_sites() if site.path in paths]
    rules = tuple(Rule(site.path, spec=site.spec, observer=rule.observer) for site, rule in chosen)
    torch.manual_seed(3)
    torch.randn(5, 8), torch.randn(6, 8)
    alone = pyquant.prepare(Net().eval(), Policy(rules))
    pyquant.calibrate(alone, batches, progress=False)
    pyquant.convert(alone)
    with torch.no_grad():
        return torch.cat([alone(batch) for batch in batches])


def reference(q: QModule, batches: list[torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), phase(q, Phase.FLOAT):
        return torch.cat([q(batch) for batch in batches])


@pytest.mark.parametrize("groups", ["site", "tensor", "module"])
def test_a_group_does_what_a_tree_with_only_it_quantized_does(groups):
    q, batches = net()
    result = sensitivity(q, batches, groups=groups, progress=False)
    expected = reference(q, batches)
    assert not result.unused
    for group in result.groups:
        alone = only(q, batches, *(site.path for site in group.sites))
        assert group.damage.sqnr == pytest.approx(sqnr_db(expected, alone), rel=1e-9), group.name
        assert group.damage.peir == pytest.approx(peir(expected, alone), rel=1e-9), group.name
    with torch.no_grad():
        quantized = torch.cat([q(batch) for batch in batches])
    assert result.together.sqnr == pytest.approx(sqnr_db(expected, quantized), rel=1e-9)


def test_a_group_that_makes_nan_does_infinite_damage():
    q, batches = net()
    runs = []

    def output(value):
        runs.append(value)
        return value if len(runs) <= len(batches) else value * float("nan")

    damage = sensitivity(q, batches, output=output, progress=False).together
    assert (damage.sqnr, damage.peir) == (-math.inf, math.inf)


def test_sites_of_one_tensor_are_one_group():
    q, batches = net()
    groups = {group.name: group for group in sensitivity(q, batches, progress=False).groups}
    assert [site.path for site in groups[":x"].sites] == [":x", "first:act_in"]
    assert [site.path for site in groups[":sum"].sites] == [":sum", "second:act_in"]
    assert groups[":x"].parts[0].elements == 40  # of the first batch, once
    assert groups["first:weight"].parts[0].elements == 64
    assert set(groups) == {
        ":x",
        ":sum",
        "first:weight",
        "first:act_out",
        "second:weight",
        "second:act_out",
    }


def test_the_tree_is_as_before_also_when_a_loss_raises():
    q, batches = net()
    with torch.no_grad():
        before = [q(batch) for batch in batches]
    cached = q.first.site("weight")._cache._value
    state = {name: value.clone() for name, value in q.state_dict().items()}

    def loss(output, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sensitivity(q, batches, loss=loss, progress=False)
    sensitivity(q, batches, progress=False)
    with torch.no_grad():
        assert all(torch.equal(q(batch), old) for batch, old in zip(batches, before, strict=True))
    assert q.first.site("weight")._cache._value is cached  # weights are not quantized again
    assert all(torch.equal(value, state[name]) for name, value in q.state_dict().items())
    assert q.state_dict().keys() == state.keys()
    assert not any("constant" in vars(site) or site._forward_hooks for site in q.all_sites())


def test_a_loss_ranks_by_its_rise():
    q, batches = net("w4a8")
    result = sensitivity(q, batches, loss=lambda output, batch: output.square().mean(), progress=False)
    plain = reference(q, batches)
    base = (plain[:5].square().mean() + plain[5:].square().mean()) / 2
    out = only(q, batches, "second:weight")
    rise = float((out[:5].square().mean() + out[5:].square().mean()) / 2 - base)
    group = next(group for group in result.groups if group.name == "second:weight")
    assert group.damage.loss == pytest.approx(rise, abs=1e-6)
    losses = [group.damage.loss for group in result.ranked("loss")]
    assert losses == sorted(losses, reverse=True)


def test_output_chooses_what_counts():
    q, batches = net()
    first = sensitivity(q, batches, output=lambda out: out[:, :1], progress=False)
    expected, quantized = reference(q, batches), torch.cat([q(batch) for batch in batches])
    assert first.together.sqnr == pytest.approx(sqnr_db(expected[:, :1], quantized[:, :1].detach()), rel=1e-9)


def test_named_groups_and_what_is_left():
    q, batches = net()
    result = sensitivity(q, batches, groups={"kernels": "*:weight", "input": [":x", "first:act_in"]}, progress=False)
    assert [group.name for group in result.groups] == ["kernels", "input"]
    assert [len(group.sites) for group in result.groups] == [2, 2]
    whole = sensitivity(q, batches, progress=False)
    assert result.bits() == whole.bits()
    assert sum(part.elements for part in result.rest) == 40 + 40 + 20  # first:act_out, :sum, second:act_out


def test_mean_bits_are_counted_by_parameter_and_element():
    q, batches = net("w4a8")
    result = sensitivity(q, batches, progress=False)
    weights, activations = 64 + 32, 40 + 40 + 40 + 20
    assert result.bits().weights == 4
    assert result.bits().activations == 8
    assert result.bits().mean == (4 * weights + 8 * activations) / (weights + activations)
    wider = result.bits({":x": 16, "second:weight": 8})
    assert wider.mean == (4 * 64 + 8 * 32 + 8 * 100 + 16 * 40) / (weights + activations)


def test_worst_become_16_bit_and_all_of_a_tensor_does():
    q, batches = net()
    result = sensitivity(q, batches, progress=False)
    chosen = result.choose(2)
    assert list(chosen) == [group.name for group in result.ranked()[:2]]
    mixed = pyquant.prepare(Net().eval(), result.mixed_policy(2))
    wide = {site.path for site in mixed.all_sites() if site.spec is not None and site.spec.dtype.bits == 16}
    assert wide == {site.path for group in result.ranked()[:2] for site in group.sites}
    assert result.mixed_policy(0) == q.policy


def test_json_comes_back(tmp_path):
    q, batches = net()
    result = sensitivity(q, batches, groups="site", progress=False)
    result.save(tmp_path / "s.json")
    again = Sensitivity.load(tmp_path / "s.json")
    assert again == result
    assert json.loads(result.to_json())["format"] == "pyquant-sensitivity-1"
    policy = result.mixed_policy(3)
    policy.save(tmp_path / "mixed.yaml")
    assert Policy.load(tmp_path / "mixed.yaml") == policy
    assert "all together" in str(result)


def test_what_cannot_work_says_so(tmp_path):
    q, batches = net()
    raw = pyquant.prepare(Net(), Policy.preset("w8a8"))
    with pytest.raises(PhaseError, match="sensitivity before the tree is ready"):
        sensitivity(raw, batches)
    with pytest.raises(PhaseError, match="got Net"):
        sensitivity(Net(), batches)
    with pytest.raises(InputError, match="got no batches"):
        sensitivity(q, [])
    with pytest.raises(InputError, match=r"pass \[batch\]"):
        sensitivity(q, batches[0])
    with pytest.raises(InputError, match="no floating tensor"):
        sensitivity(q, batches, output=lambda out: out.argmax(-1), progress=False)
    counts = iter([1, 2])
    with pytest.raises(InputError, match=r"another number of floating tensors for some batches \(\[1, 2\]\)"):
        sensitivity(q, batches[:2], output=lambda out: [out] * next(counts), progress=False)
    with pytest.raises(PolicyError, match="match no quantized site"):
        sensitivity(q, batches, groups=["nowhere*"], progress=False)
    with pytest.raises(PolicyError, match="both have"):
        sensitivity(q, batches, groups=["first:*", "*:weight"], progress=False)
    with pytest.raises(PolicyError, match="choose one of tensor, site, module"):
        sensitivity(q, batches, groups="layer", progress=False)
    result = sensitivity(q, batches, progress=False)
    with pytest.raises(PolicyError, match="either worst=K groups or budget"):
        result.mixed_policy()
    with pytest.raises(PolicyError, match="larger budget"):
        result.mixed_policy(budget=7.0)
    with pytest.raises(PolicyError, match="8 or 16 bits"):
        result.mixed_policy(2, widths=(12,))
    with pytest.raises(PolicyError, match="needs sensitivity"):
        result.ranked("loss")
    with pytest.raises(PolicyError, match="no group is named 'x'"):
        result.bits({"x": 16})
    with pytest.raises(PolicyError, match="pyquant-sensitivity-1"):
        Sensitivity.from_json("{}")


# --- the trained digits classifier ---


@functools.cache
def digits() -> tuple[model.DigitsClassifier, dict, torch.Tensor]:
    fp = model.DigitsClassifier.load()
    heldout = data.patchify(data.load_split("heldout").images[:160], fp.config)
    return fp, heldout, model.predict(fp, heldout)


@functools.cache
def quantized(policy: Policy) -> QModule:
    fp, _, _ = digits()
    q = pyquant.prepare(fp, policy)
    pyquant.calibrate(q, data.batches(data.load_split("train")[:64], fp.config), progress=False)
    pyquant.convert(q)
    return q


@functools.cache
def measured(recipe: str) -> Sensitivity:
    """On training images; the first batch is one image, so that bits are those of one image."""
    fp, _, _ = digits()
    images = data.load_split("train").images
    batches = [data.patchify(images[256:257], fp.config), data.patchify(images[257:262], fp.config)]
    return sensitivity(quantized(Policy.preset(recipe)), batches, progress=False)


def heldout_sqnr(policy: Policy) -> float:
    _, inputs, expected = digits()
    return float(sqnr_db(expected, model.predict(quantized(policy), inputs)))


def decided() -> tuple[Net, QModule, QModule, list[torch.Tensor]]:
    """A float net, its tree with both weights decided by GPTQ, the tree before that, and batches."""
    torch.manual_seed(3)
    fp, batches = Net().eval(), [torch.randn(40, 8), torch.randn(6, 8)]
    recipe = Recipe("g", Policy.preset("w4a16"), (Step("gptq"),))
    q = pyquant.quantize(fp, batches, recipe=recipe, progress=False)
    return fp, q, pyquant.prepare(fp, recipe.policy), batches


def test_a_decided_weight_is_measured_by_its_integers_against_its_float_value():
    fp, q, reference, batches = decided()
    found = sensitivity(q, batches, groups="site", reference=reference, progress=False)
    assert found.settled == ()
    groups = {group.name: group.damage.sqnr for group in found.groups}
    with torch.no_grad():
        plain = torch.cat([fp(x) for x in batches])
        for name in ("first", "second"):
            other = copy.deepcopy(fp)
            weight = q.get_submodule(name).weight
            nearest = reference.get_submodule(name).weight
            assert not torch.equal(weight, nearest)
            other.get_submodule(name).weight.data = weight.clone()
            by_hand = float(sqnr_db(plain, torch.cat([other(x) for x in batches])))
            assert groups[f"{name}:weight"] == pytest.approx(by_hand, abs=1e-3)
        whole = float(sqnr_db(plain, torch.cat([q(x) for x in batches])))
    assert found.together.sqnr == pytest.approx(whole, abs=1e-3)
    assert math.isfinite(groups["first:weight"])
    wider = found.choose(worst=1)
    assert next(iter(wider)).endswith(":weight"), "4-bit weights cost more than 16-bit activations"


def test_without_a_reference_decided_weights_are_named(tmp_path):
    _, q, reference, batches = decided()
    found = sensitivity(q, batches, groups="site", progress=False)
    assert found.settled == ("first:weight", "second:weight")
    assert {g.name: g.damage.sqnr for g in found.groups}["first:weight"] == math.inf
    assert "2 weights are on their grid already (decided, or loaded), and were measured against themselves" in str(
        found
    )
    assert Sensitivity.from_json(found.to_json()) == found
    pyquant.save_quantized(q, tmp_path / "q")
    loaded = pyquant.load_quantized(tmp_path / "q", Net())
    assert sensitivity(loaded, batches, progress=False).settled == found.settled
    assert sensitivity(loaded, batches, reference=reference, progress=False).settled == ()
    with pytest.raises(PhaseError, match="it is pyquant"):
        sensitivity(q, batches, reference=q)
    other = pyquant.prepare(Net(), q.policy)
    algorithms.gptq(other, batches, progress=False)
    with pytest.raises(PhaseError, match=r"'first:weight' of the reference is decided too \(gptq\)"):
        sensitivity(q, batches, reference=other)
    with pytest.raises(InputError, match="the reference has no such weight where the tree has 'first:weight'"):
        sensitivity(q, batches, reference=pyquant.prepare(nn.Linear(8, 8), Policy.preset("w8a8")))


def test_a_report_compares_decided_weights_with_the_reference():
    fp, q, reference, batches = decided()
    with torch.no_grad():
        whole = sqnr_db(torch.cat([fp(x).flatten() for x in batches]), torch.cat([q(x).flatten() for x in batches]))
    found = reporter.collect(q, batches, reference=reference)
    assert found.output.sqnr == pytest.approx(float(whole), abs=1e-3)
    assert found.settled == 0
    alone = reporter.collect(q, batches)
    assert alone.settled == 2
    assert alone.output.sqnr > found.output.sqnr + 20
    assert "2, compared with themselves" in dict(alone.rows())["weights on their grid"]


def test_mixed_beats_uniform_w8a8_at_the_same_mean_of_8_bits(record_property):
    """From w4a8: what suffers least stays at 4 bits, what suffers most gets 16, the mean is w8a8's, not a bit more."""
    uniform = measured("w8a8")
    assert uniform.bits().mean == 8.0
    found = measured("w4a8")
    widths = found.choose(budget=8.0, widths=(8, 16))
    assert 7.99 < found.bits(widths).mean <= 8.0
    plain, mixed = heldout_sqnr(Policy.preset("w8a8")), heldout_sqnr(found.policy_of(widths))
    record_property("sqnr_db", {"w8a8": plain, "mixed": mixed})
    print(f"\nheld-out logits at 8.0 bits: uniform w8a8 {plain:.2f} dB, mixed {mixed:.2f} dB ({found.bits(widths)})")
    assert mixed > plain + 1


@pytest.mark.parametrize(("recipe", "more"), [("w4a8", 0.25), ("w4a8", 1.0), ("w8a8", 0.25), ("w8a8", 1.0)])
def test_choosing_by_damage_beats_choosing_blindly_at_the_same_bits(recipe, more):
    """Against the first groups, the last, every second, and three random draws that spend the same bits at 16."""
    found = measured(recipe)
    budget = found.bits().mean + more
    chosen = found.choose(budget=budget)
    score = heldout_sqnr(found.policy_of(chosen))
    elements = sum(part.elements for group in found.groups for part in group.parts)

    def spend(order):
        left, picked = more * elements, {}
        for group in order:
            cost = group.total(16) - group.total()
            if 0 < cost <= left:
                left -= cost
                picked[group.name] = 16
        return picked

    groups = list(found.groups)
    blind = {"first": groups, "last": groups[::-1], "spread": groups[::3] + groups[1::3] + groups[2::3]}
    blind |= {f"random {seed}": random.Random(seed).sample(groups, len(groups)) for seed in range(3)}
    scores = {}
    for name, order in blind.items():
        picked = spend(order)
        assert found.bits(picked).mean == pytest.approx(budget, abs=0.02)
        scores[name] = heldout_sqnr(found.policy_of(picked))
    said = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
    print(f"\n{recipe} + {more} bits: by damage {score:.1f} dB; {said}")
    assert found.bits(chosen).mean <= budget
    assert score > max(scores.values())
    assert score > heldout_sqnr(Policy.preset(recipe)) + 1


def test_the_mixed_policy_exports_and_the_file_computes_it():
    """Neighbours of different width stand in one file: every operator within a step of the simulation."""
    _, inputs, _ = digits()
    found = measured("w4a8")
    q = quantized(found.mixed_policy(budget=8.0, widths=(8, 16)))
    program = pyquant.export(q, gemma4.VisionProfile(grid=(8, 8), batch_size=1))
    assert not program.missing_qparams()
    dtypes = {tensor.dtype for tensor in program.graph.tensors}
    assert {"int4", "int8", "uint8", "int16"} <= dtypes
    report = pyquant.verify.compare(program, q, {"pixel_values": inputs["pixel_values"][:1]})
    assert not op_faults(report)


def test_16_bit_symmetric_keeps_granularity():
    found = measured("w4a8")
    rules = found.mixed_policy(1).rules[len(found.policy.rules) :]
    assert rules
    base = {site.path: site.spec for group in found.groups for site in group.sites}
    for rule in rules:
        assert rule.spec == QuantSpec(IntType(16, True), symmetric=True, granularity=base[rule.match].granularity)


def test_ggml_blocks_are_switched_too():
    """Their sites have no qparams: the scales stand among the data."""
    torch.manual_seed(0)
    fp, batches = nn.Linear(64, 16), [torch.randn(3, 64)]
    q = pyquant.prepare(fp, Policy((Rule("*", role=Role.WEIGHT, spec=BlockSpec("q4_0")),)))
    pyquant.calibrate(q, batches, progress=False)
    pyquant.convert(q)
    with torch.no_grad():
        expected, got = fp(batches[0]), q(batches[0])
    found = sensitivity(q, batches, progress=False)
    assert [group.name for group in found.groups] == [":weight"]
    assert found.groups[0].damage.sqnr == pytest.approx(sqnr_db(expected, got), rel=1e-4)
    assert found.bits().weights == 4
    assert torch.equal(q(batches[0]), got)
    wide = found.mixed_policy(1).rules[-1].spec
    assert wide == QuantSpec(IntType(16, True), symmetric=True, granularity=PerAxis(0))
    data = reporter.collect(q, batches)
    kernel = fp.weight.detach()
    rounded = pyquant.ops.fake_quantize_blocks(kernel, 4)
    assert data.sites[0].sqnr == pytest.approx(sqnr_db(kernel, rounded), rel=1e-6)
    assert data.after == 16 * 64 // 32 * 18 + 16 * 4
