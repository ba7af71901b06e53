# SPDX-License-Identifier: Apache-2.0
"""The steps of a recipe: the schema has the parameters of each function; where_possible says what it leaves out."""

from __future__ import annotations

import inspect

import pytest
import torch

import pyquant
from pyquant import Policy, Recipe, Step, algorithms, recipes, steps
from pyquant.errors import InputError
from pyquant.models.gemma4 import whole_example
from pyquant.models.llama import example
from pyquant.recipe import STAGES

RUN = {"q", "batches", "progress", "resume"}  # what a run gives, and no recipe says
TYPES = {"boolean": bool, "integer": int, "number": float, "string": str}


def test_every_algorithm_is_a_step() -> None:
    assert set(STAGES) == set(recipes.schema()["$defs"]["step"]["properties"]) == set(steps._FUNCTIONS)
    assert set(STAGES) - {"calibrate"} == set(algorithms.__all__)


@pytest.mark.parametrize("name", STAGES)
def test_the_schema_of_a_step_has_the_parameters_of_its_function(name: str) -> None:
    schema = recipes.schema()["$defs"]["step"]["properties"][name]
    parameters = inspect.signature(steps._FUNCTIONS[name]).parameters
    own = set(parameters) - RUN
    listed = set(schema["properties"]) - ({"samples"} if "batches" in parameters else set()) - {"where_possible"}
    assert listed == own
    assert ("samples" in schema["properties"]) == ("batches" in parameters)
    for key in own:
        default, kind = parameters[key].default, schema["properties"][key].get("type")
        assert default is not inspect.Parameter.empty, f"{name}: {key} would have to be given"
        if kind in TYPES and default is not None:
            assert isinstance(default, TYPES[kind]) or (kind == "number" and isinstance(default, int))


def test_rotate_where_possible_serves_llama_whole_and_gemma4_in_part(caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe("r", Policy.preset("w8a16"), (Step("rotate", {"where_possible": True}),))
    fp = example.tiny_model()
    batch = example.example_inputs(fp)
    q = pyquant.prepare(fp, recipe.policy)
    pyquant.oneshot.calibrate_by(q, [batch], recipe, only=("fold",), progress=False)
    by_hand = pyquant.prepare(fp, recipe.policy)
    algorithms.rotate(by_hand)
    assert q.state.notes == []
    rotated = dict(q.named_parameters())
    assert all(torch.equal(value, rotated[name]) for name, value in by_hand.named_parameters())

    fp = whole_example.tiny_model()
    batch = whole_example.example_inputs(fp)
    with pytest.raises(InputError, match="cannot be rotated"):
        algorithms.rotate(pyquant.prepare(fp, recipe.policy))
    q = pyquant.prepare(fp, recipe.policy)
    pyquant.oneshot.calibrate_by(q, [batch], recipe, only=("fold",), progress=False)
    assert q.state.notes
    assert all("rotate left out: " in note for note in q.state.notes)
    assert "cannot be rotated" in caplog.text
