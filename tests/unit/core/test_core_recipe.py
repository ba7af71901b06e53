# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: the file form, what the schema refuses and in which line, the order of steps, the presets."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import jsonschema
import pytest

from pyquant import Policy, Recipe, Step, recipes
from pyquant.errors import PolicyError, SpecError

HEAD = "format: pyquant-recipe\nversion: 1\nname: mine\n"


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipes.names())
def test_every_preset_loads_and_its_policy_is_the_one_that_prepare_takes(name: str) -> None:
    recipe = Recipe.preset(name)
    assert recipe.name == name
    assert recipe.policy == Policy.preset(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", recipes.names())
def test_every_preset_names_its_evidence_and_what_it_is_for(name: str) -> None:
    recipe = Recipe.preset(name)
    assert recipe.evidence
    assert recipe.description


@pytest.mark.parametrize("name", ["w4a16", "w4a8", "w8a8", "w8a16"])
def test_the_fast_presets_have_no_steps(name: str) -> None:
    assert Recipe.preset(f"{name}-fast").steps == ()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(recipes.schema())


@pytest.mark.parametrize("name", ["r.yaml", "r.json"])
def test_a_file_gives_the_recipe_back(tmp_path: Path, name: str) -> None:
    recipe = Recipe("mine", Policy.preset("w8a8"), (Step("calibrate", {"samples": 3}),), "for a test", "measured: 3 µs")
    recipe.save(tmp_path / name)
    found = Recipe.load(tmp_path / name)
    assert (found.name, found.steps, found.description, found.evidence) == (
        "mine", recipe.steps, "for a test", "measured: 3 µs",
    )  # fmt: skip
    assert found.policy.rules == recipe.policy.rules
    assert found.steps[0].parameters == {"samples": 3}
    assert Policy.load(tmp_path / name).rules == recipe.policy.rules, "a recipe file is a policy file for prepare"


def test_a_policy_file_is_a_recipe_without_steps(tmp_path: Path) -> None:
    Policy.preset("w8a16").save(tmp_path / "p.yaml")
    assert Recipe.load(tmp_path / "p.yaml") == Recipe("w8a16", Policy.preset("w8a16"))
    old = {"format": "pyquant-recipe", "version": 1, "model": {}, "policy": Policy.preset("w8a16").to_dict()}
    assert Recipe.from_dict(old) == Recipe("w8a16", Policy.preset("w8a16")), "a recipe.yaml of before"


def test_extends_takes_the_rules_and_the_steps_unless_steps_are_given(tmp_path: Path, monkeypatch) -> None:
    base = {"format": "pyquant-recipe", "version": 1, "name": "base", "steps": [{"calibrate": {"samples": 2}}],
            "rules": [{"match": "*", "spec": None}]}  # fmt: skip
    monkeypatch.setattr(recipes, "names", lambda: ("base",))
    monkeypatch.setattr(recipes, "read", lambda name: base)
    more = f'{HEAD}extends: base\nrules:\n  - {{match: "a*", spec: null, optional: true}}\n'
    found = Recipe.load(written(tmp_path, more))
    assert [rule.match for rule in found.policy.rules] == ["*", "a*"]
    assert found.steps == (Step("calibrate", {"samples": 2}),)
    assert Recipe.load(written(tmp_path, f"{more}steps: []\n")).steps == ()
    with pytest.raises(PolicyError, match=r"line 4: extends: recipe 'other' does not exist; choose one of base"):
        Recipe.load(written(tmp_path, f"{HEAD}extends: other\n"))


BAD = {
    "unknown-step": (
        "steps:\n  - calibrat: {}\n",
        r"line 5: steps\[0\]: 'calibrat' is not known here \(did you mean 'ca",
    ),
    "unknown-parameter": (
        "steps:\n  - calibrate:\n      sample: 3\n",
        r"line 5: steps\[0\].calibrate: 'sample' is not known here \(did you mean 'samples'\?\); there are samples",
    ),
    "value": (
        "steps:\n  - calibrate:\n      samples: many\n",
        r"line 6: steps\[0\].calibrate.samples: expected a whole number, got 'many'",
    ),
    "bound": ("steps: [calibrate: {samples: 0}]\n", r"line 4: steps.*samples: expected a value of at least 1, got 0"),
    "nan": ("steps:\n  - gptq: {damping: .nan}\n", r"line 5: steps\[0\].gptq.damping: expected a number, got nan"),
    "exponent": (
        "steps:\n  - gptq: {damping: 1e-2}\n",
        r"line 5: .*got '1e-2' \(YAML reads 1e-2 as text: write",
    ),
    "two-keys": ("steps:\n  - {calibrate: {}, rotate: {}}\n", r"line 5: steps\[0\]"),
    "no-mapping": ("steps:\n  - calibrate\n", r"line 5: steps\[0\]: expected a mapping, got 'calibrate'"),
    "key": ("step: []\n", r"line 1: 'step' is not known here \(did you mean 'steps'\?\)"),
    "twice": ("steps:\n  - calibrate: {}\n  - calibrate: {}\n", r"line 4: steps: calibrate is one step"),
    "order": (
        "steps:\n  - gptq: {}\n  - rotate: {}\n",
        r"line 4: steps: step 'rotate' changes float .* before 'gptq'",
    ),
    "after": ("steps:\n  - auto16: {}\n  - calibrate: {}\n", r"line 4: steps: step 'calibrate' finds the ranges"),
    "no-alpha": ("steps:\n  - smooth: {alpha: much}\n", r"line 5: steps\[0\].smooth.alpha: How much .* got 'much'"),
    "rule": (
        'rules:\n  - {match: "*", spec: null}\n  - {match: "*", spec: {dtype: int99}}\n',
        r"line 6: rules\[1\]: ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_named_with_its_file_line_and_key(tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    path = written(tmp_path, HEAD + text)
    with pytest.raises(PolicyError, match=rf"recipe file '.*r\.yaml', {message}"):
        Recipe.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is not valid yaml"):
        Recipe.load(written(tmp_path, "a: [\n"))
    with pytest.raises(PolicyError, match=r"version: expected 1, got 2; a newer file needs a newer pyquant"):
        Recipe.load(written(tmp_path, "format: pyquant-recipe\nversion: 2\n"))
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="is no UTF-8 text"):
        Recipe.load(tmp_path / "b.yaml")


def test_a_recipe_by_name_file_or_policy(tmp_path: Path) -> None:
    policy = Policy.preset("w8a8")
    assert Recipe.of("w8a8") == Recipe.preset("w8a8")
    assert Recipe.of(policy) == Recipe("w8a8", policy)
    policy.save(tmp_path / "file.yaml")
    assert Recipe.of(str(tmp_path / "file.yaml")).policy == policy
    with pytest.raises(PolicyError, match=r"recipe 'w3a3' does not exist; choose one of .*w8a8.*, or a file"):
        Recipe.of("w3a3")
    with pytest.raises(PolicyError, match="a recipe is a Recipe, a Policy, a name or a file, got 4"):
        Recipe.of(4)  # type: ignore[arg-type]


def test_steps_are_checked_when_they_are_made() -> None:
    with pytest.raises(SpecError, match=r"'rotatex' is not known here"):
        Step("rotatex")
    with pytest.raises(SpecError, match="expected a value of at least 1, got -3"):
        Step("calibrate", {"samples": -3})
    with pytest.raises(SpecError, match="recipe 'x': calibrate is one step"):
        Recipe("x", Policy(), (Step("calibrate"), Step("calibrate")))
    step = Step("calibrate", {"samples": 3})
    assert str(step) == "calibrate(samples=3)"
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert other == step
        assert hash(other) == hash(step)


def test_rules_of_a_policy_come_after_those_of_the_recipe() -> None:
    recipe = Recipe("a", Policy.preset("w8a8"), (Step("calibrate"),)).with_rules(Policy.preset("float"))
    assert (recipe.name, recipe.policy.name) == ("a+float", "a+float")
    assert recipe.steps == (Step("calibrate"),)
