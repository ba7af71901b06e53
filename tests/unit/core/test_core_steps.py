# SPDX-License-Identifier: Apache-2.0
"""The steps of a recipe: the schema has the parameters of each function; where_possible says what it leaves out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import pyquant
from pyquant import Policy, Recipe, Step, algorithms, oneshot, recipes, steps
from pyquant.decision import from_csv
from pyquant.errors import InputError
from pyquant.models.gemma4 import whole_example
from pyquant.models.llama import example
from pyquant.recipe import STAGES
from pyquant.weight import weights

RUN = {"q", "batches", "progress", "resume", "group"}  # what a run gives, and no recipe says
TYPES = {"boolean": bool, "integer": int, "number": float, "string": str}


def test_every_algorithm_is_a_step() -> None:
    assert set(STAGES) == set(recipes.schema()["$defs"]["step"]["properties"]) == set(steps._FUNCTIONS)
    functions = {name for name in algorithms.__all__ if inspect.isfunction(getattr(algorithms, name))}
    assert set(STAGES) - {"calibrate"} == functions


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
        if isinstance(kind, str) and kind in TYPES and default is not None:
            assert isinstance(default, TYPES[kind]) or (kind == "number" and isinstance(default, int))


def test_rotate_where_possible_serves_llama_whole_and_gemma4_in_part(caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe("r", Policy.preset("w8a16"), (Step("rotate", {"where_possible": True}),))
    fp = example.tiny_model()
    batch = example.example_inputs(fp)
    q = pyquant.prepare(fp, recipe.policy)
    oneshot.calibrate_by(q, [batch], recipe, only=("fold",), progress=False)
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
    oneshot.calibrate_by(q, [batch], recipe, only=("fold",), progress=False)
    assert q.state.notes
    assert all("rotate left out: " in note for note in q.state.notes)
    assert "cannot be rotated" in caplog.text


GPTQ = Recipe("g", Policy.preset("w4a16"), (Step("rotate"), Step("gptq", {"samples": 2, "damping": 0.02})))


def llama() -> tuple[Any, list[Any]]:
    fp = example.tiny_model()
    ids = torch.arange(3, 15)[None]
    return fp, [{"input_ids": (ids * (7 + n)) % fp.config.vocab_size} for n in range(4)]


def test_a_recipe_is_its_steps_by_hand(tmp_path: Path) -> None:
    fp, batches = llama()
    q = pyquant.quantize(fp, batches, recipe=GPTQ, progress=False)
    by_hand = pyquant.prepare(fp, GPTQ.policy)
    algorithms.rotate(by_hand)
    decided = algorithms.gptq(by_hand, [batches[0], batches[2]], damping=0.02, progress=False)
    pyquant.calibrate(by_hand, batches, progress=False)
    pyquant.convert(by_hand)
    assert torch.equal(q(**batches[1]).logits, by_hand(**batches[1]).logits)
    assert [(d.path, d.loss, d.rows) for d in q.state.log] == [(d.path, d.loss, d.rows) for d in decided]
    assert {d.how for d in q.state.log} == {"gptq"}
    nearest = pyquant.quantize(fp, batches, recipe=GPTQ.policy, progress=False)
    assert not torch.equal(nearest(**batches[1]).logits, q(**batches[1]).logits)
    pyquant.save_quantized(q, tmp_path / "q")
    log = from_csv((tmp_path / "q" / "quantization_log.csv").read_text())
    assert [d.path for d in log] == [d.path for d in decided]
    loaded = pyquant.load_quantized(tmp_path / "q")
    assert torch.equal(loaded(**batches[1]).logits, q(**batches[1]).logits)


def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    fp, batches = llama()
    q = pyquant.quantize(fp, batches, recipe=GPTQ, progress=False)
    first = pyquant.quantize(fp, batches, recipe=GPTQ, progress=False, resume=tmp_path / "r")
    assert sorted(folder.name for folder in (tmp_path / "r").iterdir()) == ["2-gptq", "3-calibrate"]
    blocks = sorted((tmp_path / "r" / "2-gptq").glob("*.safetensors"))
    assert len(blocks) > 1
    blocks[-1].unlink()
    again = pyquant.quantize(fp, batches, recipe=GPTQ, progress=False, resume=tmp_path / "r")
    for tree in (first, again):
        assert torch.equal(tree(**batches[1]).logits, q(**batches[1]).logits)


def test_integers_of_a_checkpoint_stay_and_that_is_said() -> None:
    fp, batches = llama()
    q = pyquant.prepare(fp, GPTQ.policy)
    algorithms.range_search(q, batches, progress=False)
    values = {w.path: w.value for w in weights(q) if w.how}
    said: list[str] = []
    oneshot.run(q, batches, GPTQ, progress=False, log=said.append)
    assert said[0].startswith(f"rotate left out: {len(values)} of ")
    assert "are decided already (range search)" in said[0]
    assert said[1].startswith("gptq left out: no weight to decide: ")
    assert q.state.notes == said
    assert all(torch.equal(w.value, values[w.path]) for w in weights(q) if w.path in values)


def test_auto16_is_run_after_calibrate_and_is_recorded() -> None:
    fp, batches = llama()
    recipe = Recipe("a", Policy.preset("w8a8"), (Step("auto16", {"samples": 2, "share": 0.5, "loss": 0.0}),))
    assert [step.algorithm for step in oneshot.whole(recipe)] == ["calibrate", "auto16"]
    q = pyquant.quantize(fp, batches, recipe=recipe, progress=False)
    wide = [site for site in q.all_sites() if site.spec is not None and site.spec.dtype.bits == 16]
    assert wide
    assert any(note.startswith("auto16: ") for note in q.state.notes)
    assert {decision.path for decision in q.state.log} >= {site.path for site in wide}
