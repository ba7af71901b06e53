# SPDX-License-Identifier: Apache-2.0
"""Laws of policies: files lose nothing, the last match decides, and order is all that matters."""

from __future__ import annotations

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pyquant import ObserverSpec, PerAxis, PerGroup, PerTensor, Policy, QuantSpec, Rule
from pyquant.role import Role
from pyquant.spec import INT4, INT8, INT16, UINT4, UINT8

granularities = st.one_of(
    st.just(PerTensor()),
    st.builds(PerAxis, st.integers(-4, 4)),
    st.builds(PerGroup, st.integers(-4, 4), st.integers(1, 256)),
)
specs = st.one_of(
    st.builds(QuantSpec, st.sampled_from([INT4, INT8, INT16]), st.just(True), granularities),
    st.builds(QuantSpec, st.sampled_from([INT4, INT8, UINT4, UINT8]), st.just(False), granularities),
)
observers = st.one_of(
    st.just(ObserverSpec()),
    st.builds(lambda m: ObserverSpec("ema", {"momentum": m}), st.floats(0, 0.99)),
    st.builds(lambda u: ObserverSpec("percentile", {"upper": u}), st.floats(51, 100)),
    st.builds(lambda lo, w: ObserverSpec("fixed", {"lo": lo, "hi": lo + w}), st.floats(-9, 9), st.floats(0.1, 9)),
)
names = st.text("ab.*:?[]0é ", min_size=1, max_size=8)
rules = st.builds(Rule, names, st.none() | st.sampled_from(Role), st.none() | specs, observers, st.booleans())
policies = st.builds(lambda r, n: Policy(tuple(r), n), st.lists(rules, max_size=5), st.text(max_size=5))
paths = st.text("ab.:0", min_size=1, max_size=8)


@given(policies)
def test_round_trip_through_data_json_and_yaml(policy: Policy) -> None:
    data = policy.to_dict()
    assert Policy.from_dict(data) == policy
    assert Policy.from_dict(json.loads(json.dumps(data))) == policy
    assert Policy.from_dict(yaml.safe_load(yaml.safe_dump(data))) == policy


@given(policies, paths, st.sampled_from(Role))
def test_the_last_match_decides(policy: Policy, path: str, role: Role) -> None:
    hits = [i for i, rule in enumerate(policy.rules) if rule.matches(path, role)]
    assert policy.choose(path, role).index == (hits[-1] if hits else None)


@given(policies, rules, paths, st.sampled_from(Role))
def test_an_appended_rule_changes_only_what_it_matches(policy: Policy, rule: Rule, path: str, role: Role) -> None:
    choice = (policy + rule).choose(path, role)
    if rule.matches(path, role):
        assert choice.rule == rule
    else:
        assert choice == policy.choose(path, role)
