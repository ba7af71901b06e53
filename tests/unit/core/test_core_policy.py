# SPDX-License-Identifier: Apache-2.0
"""Policies: which rule decides a site, presets, files, and errors of bad ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyquant import ObserverSpec, PerAxis, Policy, QuantSpec, Rule, observe
from pyquant.errors import PolicyError, SpecError
from pyquant.policy import _OBSERVERS
from pyquant.role import Role
from pyquant.spec import INT4, INT8, INT16, UINT8, PerTensor

U8 = QuantSpec(UINT8)
I8 = QuantSpec(INT8, symmetric=True)
I16 = QuantSpec(INT16, symmetric=True)


def site(path: str, role: Role = Role.ACTIVATION) -> SimpleNamespace:
    return SimpleNamespace(path=path, role=role)


def spec_of(policy: Policy, path: str, role: Role) -> QuantSpec | None:
    rule = policy.choose(path, role).rule
    return rule.spec if rule else None


PRESETS = {
    "w8a8": (U8, U8, U8, QuantSpec(UINT8, False, PerAxis(0))),
    "w8a8_int8": (QuantSpec(INT8), QuantSpec(INT8), QuantSpec(INT8), QuantSpec(INT8, True, PerAxis(0))),
    "w8a16": (I16, I16, I8, QuantSpec(INT8, True, PerAxis(0))),
    "w4a16": (I16, I16, I8, QuantSpec(INT4, True, PerAxis(0))),
    "w4a8": (U8, U8, U8, QuantSpec(INT4, True, PerAxis(0))),
    "float": (None, None, None, None),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_gives_each_role_its_format(name: str) -> None:
    policy = Policy.preset(name)
    roles = (Role.ACTIVATION, Role.CONSTANT, Role.EMBEDDING, Role.WEIGHT)
    assert tuple(spec_of(policy, "a.b:c", role) for role in roles) == PRESETS[name]
    assert policy.name == name
    policy.check_used([])  # a preset serves a model without embeddings too


def test_no_preset_searches_the_weight_range() -> None:
    """On a real network the searched range of 4-bit weights lost twice what the plain one did."""
    for name in PRESETS:
        rule = Policy.preset(name).choose("a:weight", Role.WEIGHT).rule
        assert rule is None or str(rule.observer) == "minmax", name


@pytest.mark.parametrize("layer", ["model.language_model.layers.3", "model.layers.27", "language_model.layers.0"])
def test_the_stream_recipe_is_wide_at_both_ends_of_down_proj(layer: str) -> None:
    policy = Policy.preset("w8a8_stream16")
    for site in (".mlp:gated", ".mlp.down_proj:act_in", ".mlp.down_proj:act_out", ":attn_residual", ":act_out"):
        assert spec_of(policy, layer + site, Role.ACTIVATION) == I16, site
    assert spec_of(policy, f"{layer}.mlp.down_proj:weight", Role.WEIGHT) == QuantSpec(INT8, True, PerAxis(0))
    for site in (".mlp.up_proj:act_out", ".mlp.act_fn:act_out", ".self_attn:key", ".self_attn.o_proj:act_out"):
        assert spec_of(policy, layer + site, Role.ACTIVATION) == U8, site
    assert spec_of(policy, f"{layer}.mlp.up_proj:weight", Role.WEIGHT) == QuantSpec(UINT8, False, PerAxis(0))


@pytest.mark.parametrize("name", ["w4a16", "w4a8"])
def test_four_bit_presets_keep_first_and_last_kernels_and_routers_at_eight(name: str) -> None:
    policy = Policy.preset(name)
    kept = (
        "model.vision_tower.patch_embedder.input_proj",
        "model.audio_tower.subsample_conv_projection.layer0.conv",
        "subsample_conv_projection.input_proj_linear",
        "model.layers.3.router.proj",
        "lm_head",
    )
    for module in kept:
        assert spec_of(policy, f"{module}:weight", Role.WEIGHT) == QuantSpec(INT8, True, PerAxis(0)), module
    for module in ("model.layers.3.mlp.gate_proj", "audio_tower.layers.0.lconv1d.depthwise_conv1d", "router.projector"):
        assert spec_of(policy, f"{module}:weight", Role.WEIGHT) == QuantSpec(INT4, True, PerAxis(0)), module


def test_the_stream_recipe_is_wide_wherever_a_layer_of_gemma4_has_the_stream() -> None:
    """It adds up to three times in a layer, and a router and two norms beside those of the MLP read it."""
    policy, layer = Policy.preset("w8a8_stream16"), "model.language_model.layers.12"
    for site in (":attn_residual", ":mlp_residual", ":per_layer_residual", ":act_out"):
        assert spec_of(policy, layer + site, Role.ACTIVATION) == I16, site
    for norm in ("pre_feedforward_layernorm", "pre_feedforward_layernorm_2", "router.norm"):
        assert spec_of(policy, f"{layer}.{norm}:act_in", Role.ACTIVATION) == I16, norm
    for site in (":per_layer_gated", ".pre_feedforward_layernorm_2:act_out", ".router.proj:act_in"):
        assert spec_of(policy, layer + site, Role.ACTIVATION) == U8, site


@pytest.mark.parametrize("path", ["encoder.layers.0.mlp.down_proj:act_in", "model.visual.blocks.0.mlp:gated"])
def test_the_stream_recipe_leaves_vision_towers_as_they_are(path: str) -> None:
    assert spec_of(Policy.preset("w8a8_stream16"), path, Role.ACTIVATION) == U8


def test_unknown_preset_lists_the_names() -> None:
    with pytest.raises(
        PolicyError,
        match=r"preset 'w2a2' does not exist; choose one of float, q8_onert, w4_onert, w4a16, w4a16-fast, ",
    ):
        Policy.preset("w2a2")


def test_last_matching_rule_wins() -> None:
    policy = Policy((Rule("*", None, U8), Rule("a.*", None, I8), Rule("a.b:*", None, None)))
    assert spec_of(policy, "z:x", Role.ACTIVATION) == U8
    assert spec_of(policy, "a.c:x", Role.ACTIVATION) == I8
    assert spec_of(policy, "a.b:x", Role.ACTIVATION) is None
    assert policy.choose("a.b:x", Role.ACTIVATION).index == 2


def test_a_site_without_a_rule_stays_float() -> None:
    choice = Policy((Rule("a", None, U8),)).choose("b:x", Role.WEIGHT)
    assert (choice.rule, choice.index) == (None, None)


@pytest.mark.parametrize(
    ("pattern", "path", "hit"),
    [
        ("*", "a.b:c", True),
        ("a.*.b:weight", "a.0.b:weight", True),
        ("a.*.b:weight", "a.0.c.b:weight", True),
        ("a.*.b:weight", "a.0.b:bias", False),
        ("a.b", "a.b:c", True),
        ("a.b", "a.b.d:c", False),
        ("*.b", "a.b:c", True),
        ("a.[01].b:c", "a.1.b:c", True),
        ("A.b:c", "a.b:c", False),
        (":act_in", ":act_in", True),
    ],
)
def test_glob(pattern: str, path: str, hit: bool) -> None:
    assert Rule(pattern, None, U8).matches(path, Role.ACTIVATION) is hit


@pytest.mark.parametrize("role", list(Role), ids=lambda r: r.value)
def test_activation_rule_covers_the_roles_with_a_known_range(role: Role) -> None:
    assert Rule("*", Role.ACTIVATION, U8).matches("a:b", role) is (
        role not in (Role.WEIGHT, Role.EMBEDDING, Role.CONSTANT)
    )
    assert Rule("*", role, U8).matches("a:b", role)
    assert not Rule("*", Role.SOFTMAX, U8).matches("a:b", Role.ACTIVATION)


def test_unused_rule_is_named_with_near_paths() -> None:
    sites = [site("encoder.layers.0.mlp.gate_proj:weight", Role.WEIGHT), site("head:act_in")]
    policy = Policy((Rule("*", None, U8), Rule("encoder.layers.*.mlp.gate_prj:weight", None, I8)), "mine")
    with pytest.raises(PolicyError) as caught:
        policy.check_used(sites)
    text = str(caught.value)
    assert "policy 'mine': 1 of 2 rules match no site" in text
    assert "rule #1 'encoder.layers.*.mlp.gate_prj:weight' -> int8 symmetric per-tensor, minmax" in text
    assert "nearest sites are 'encoder.layers.0.mlp.gate_proj:weight'" in text


def test_unused_rule_of_another_role_says_so() -> None:
    with pytest.raises(PolicyError, match="its pattern matches sites, but of role weight"):
        Policy((Rule("head:*", Role.ACTIVATION, U8),)).check_used([site("head:w", Role.WEIGHT)])


def test_optional_and_shadowed_rules_may_decide_nothing() -> None:
    Policy((Rule("nope", None, U8, optional=True), Rule("*", None, U8), Rule("*", None, I8))).check_used([site("a:b")])


def test_rules_append() -> None:
    base, extra = Policy((Rule("*", None, U8),), "base"), Rule("head", None, None)
    for policy in (base.with_rule(extra), base + extra, base + iter([extra]), base + Policy((extra,), "other")):
        assert policy.rules == (*base.rules, extra)
        assert policy.name == "base"
    assert len(base.rules) == 1


def test_explain_is_a_table_of_all_sites() -> None:
    tree = SimpleNamespace(all_sites=lambda: iter([site("a:x"), site("a:p", Role.SOFTMAX), site("b:w", Role.WEIGHT)]))
    policy = Policy((Rule("*", Role.ACTIVATION, U8, ObserverSpec("ema", {"momentum": 0.5})), Rule("c", None, I8)), "p")
    explanation = policy.explain(tree)
    assert [c.index for c in explanation.choices] == [0, 0, None]
    lines = str(explanation).splitlines()
    assert lines[0] == "policy p: 3 sites"
    assert lines[1].split() == ["site", "role", "rule", "format", "range"]
    assert lines[2].split() == [
        "a:x",
        "activation",
        "#0",
        "*",
        "uint8",
        "asymmetric",
        "per-tensor",
        "ema(momentum=0.5)",
    ]
    assert lines[3].split()[-1] == "known"
    assert lines[4].split() == ["b:w", "weight", "no", "rule", "float"]


def test_policy_is_a_frozen_hashable_value() -> None:
    rule = Rule("*", Role.WEIGHT, U8, ObserverSpec("percentile", {"upper": 99.0}))
    policy = Policy((rule,), "p")
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.name = "q"  # type: ignore[misc]
    with pytest.raises(TypeError):
        rule.observer.params["upper"] = 1.0  # type: ignore[index]
    assert hash(policy) == hash(copy.deepcopy(policy))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert str(policy) == "policy p\n  #0 '*', role=weight -> uint8 asymmetric per-tensor, percentile(upper=99.0)"


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize("name", PRESETS)
def test_file_round_trip(name: str, suffix: str, tmp_path: Path) -> None:
    policy = Policy.preset(name) + Rule("head:*", Role.WEIGHT, QuantSpec(INT8, True, PerTensor()), ObserverSpec("mse"))
    file = tmp_path / f"policy{suffix}"
    policy.save(file)
    assert Policy.load(file) == policy


def test_file_may_extend_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "format: pyquant-policy\nversion: 1\nname: mine\nextends: w8a8\n"
        "rules:\n  - {match: lm_head, role: weight, spec: {dtype: int4, symmetric: true}, observer: mse}\n"
    )
    policy = Policy.load(file)
    assert policy.rules[:-1] == Policy.preset("w8a8").rules
    assert policy.rules[-1] == Rule("lm_head", Role.WEIGHT, QuantSpec(INT4, True), ObserverSpec("mse"))


HEAD = {"format": "pyquant-policy", "version": 1}
BAD_FILES = {
    "not-json": ("{", "is not valid json"),
    "list": ("[]", r"a policy is a mapping with the keys \['description'"),
    "other-format": ('{"format": "x", "version": 1}', "expected format 'pyquant-policy' version 1, got 'x'"),
    "newer": ('{"format": "pyquant-policy", "version": 2}', "a newer file needs a newer pyquant"),
    "no-version": ('{"format": "pyquant-policy"}', "missing: version"),
    "unknown-key": (json.dumps({**HEAD, "rule": []}), "unknown: rule"),
    "rules-no-list": (json.dumps({**HEAD, "rules": {}}), "the rules of a policy are a list, got dict"),
    "unknown-base": (json.dumps({**HEAD, "extends": "w1"}), "preset 'w1' does not exist"),
    "rule-key": (json.dumps({**HEAD, "rules": [{"match": "*", "spec": None, "rôle": 1}]}), "unknown: rôle"),
    "rule-no-spec": (json.dumps({**HEAD, "rules": [{"match": "*"}]}), "missing: spec"),
    "rule-spec-name": (
        json.dumps({**HEAD, "rules": [{"match": "*", "spec": "int8"}]}),
        "or null for float, got 'int8'",
    ),
    "rule-role": (
        json.dumps({**HEAD, "rules": [{"match": "*", "spec": None, "role": "weights"}]}),
        "role 'weights' does",
    ),
    "rule-optional": (
        json.dumps({**HEAD, "rules": [{"match": "*", "spec": None, "optional": 1}]}),
        "true or false, got 1",
    ),
    "rule-match": (
        json.dumps({**HEAD, "rules": [{"match": "", "spec": None}]}),
        "a rule needs a pattern over site paths",
    ),
    "dtype": (json.dumps({**HEAD, "rules": [{"match": "*", "spec": {"dtype": "int3"}}]}), "'int3' does not exist here"),
    "observer": (
        json.dumps({**HEAD, "rules": [{"match": "*", "spec": None, "observer": 3}]}),
        "an observer is a name or",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    text, message = BAD_FILES[case]
    file = tmp_path / "p.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError, match=message):
        Policy.load(file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nope.yaml' cannot be read: No such file"):
        Policy.load(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("kl", {}, "observer 'kl' does not exist; choose one of minmax, ema, percentile, mse, fixed"),
        ("ema", {"decay": 0.9}, r"takes the parameters \['momentum'\], got \['decay'\]"),
        ("fixed", {"lo": 0.0}, "hi must be given"),
        ("ema", {"momentum": "fast"}, "momentum must be a number, got 'fast'"),
    ],
    ids=["kind", "parameter", "missing", "type"],
)
def test_bad_observer_spec(kind: str, params: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ObserverSpec(kind, params)


def test_rule_refuses_what_is_no_spec() -> None:
    with pytest.raises(SpecError, match=r"needs a QuantSpec or None, and an ObserverSpec; got 'int8' and"):
        Rule("*", None, "int8")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a policy consists of Rules, got 'w8a8'"):
        Policy(("w8a8",))  # type: ignore[arg-type]


def test_observer_tables_agree() -> None:
    """policy.py has the kinds and parameters as data, observe/ as classes: they are the same."""
    assert tuple(_OBSERVERS) == observe.kinds()
    for kind, params in _OBSERVERS.items():
        values = {"momentum": 0.5, "lower": 1.0, "upper": 99.0, "bins": 64, "lo": -1.0, "hi": 1.0}
        observe.make(kind, {name: values[name] for name in params}, U8)
