# SPDX-License-Identifier: Apache-2.0
"""Every step of recipes on a tiny Llama: the files are the tree, and a saved tree is the same bits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_tiny import ids, model, padded
from torch import Tensor

import pyquant
from pyquant import Policy, Recipe
from pyquant.models import llama
from pyquant.recipe import STAGES, Step
from pyquant.verify import Session, compare
from pyquant.verify.tolerance import op_faults
from pyquant.weight import weights

RECIPES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "rotated": ("w4a16", [{"rotate": {}}]),
    "range_search": ("w4a16", [{"range_search": {}}]),
    "gptq": ("w4a16", [{"gptq": {}}]),
    "gptaq": ("w4a16", [{"gptq": {"propagate": "quantized", "alpha": 0.5}}]),
    "rotated gptq": ("w4a16", [{"rotate": {}}, {"gptq": {}}]),
    "smooth": ("w8a8", [{"smooth": {}}, {"range_search": {}}]),
    "tune": ("w4a16", [{"tune": {"steps": 4}}]),
    "auto16": ("w8a8", [{"rotate": {}}, {"auto16": {"loss": 1e-4, "ranges": True}}]),
    "gptq in 8 bits": ("w8a8", [{"rotate": {}}, {"gptq": {"max_bits": 8}}]),
}


@cache
def float_model() -> Any:
    return model(attention_bias=True)


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids(2, 9, seed=seed)} for seed in range(4)] + [padded((7, 4), "left")]


@cache
def tree(name: str) -> Any:
    preset, steps = RECIPES[name]
    listed = tuple(Step(key, parameters) for step in steps for key, parameters in step.items())
    recipe = Recipe(name, Policy.preset(preset), listed)
    return pyquant.quantize(float_model(), batches(), recipe, progress=False)


def test_every_step_is_here() -> None:
    tested = {name for _, steps in RECIPES.values() for step in steps for name in step}
    assert tested == set(STAGES) - {"calibrate"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_are_the_tree(name: str, tmp_path: Path) -> None:
    q = tree(name)
    programs = pyquant.export_bundle(q, tmp_path / "b", llama.Profile(max_seq_len=10, prefill_lengths=(6,)))
    seen: dict[str, dict[str, Tensor]] = {}
    with Session(tmp_path / "b", runtime="tico") as session:

        def run(graph: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            seen[graph] = inputs
            return session.run(graph, inputs)

        tokens = session.host.generate(run, ids(1, 5), max_new_tokens=3)
    assert torch.equal(tokens, q.generate(ids(1, 5), max_new_tokens=3, do_sample=False))
    for graph, inputs in seen.items():
        assert programs[graph].missing_qparams() == [], graph
        assert op_faults(compare(programs[graph], None, inputs)) == [], graph


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_tree_is_the_same_bits(name: str, tmp_path: Path) -> None:
    q = tree(name)
    pyquant.save_quantized(q, tmp_path / "saved")
    loaded: Any = pyquant.load_quantized(tmp_path / "saved")
    assert torch.equal(loaded(ids(2, 6)).logits, q(ids(2, 6)).logits)
    decided = {weight.path: weight for weight in weights(q) if weight.how}
    for weight in weights(loaded):
        if weight.path in decided:
            assert torch.equal(weight.integers, decided[weight.path].integers), weight.path
    assert loaded.state.recipe == q.state.recipe
    assert [d.path for d in loaded.state.log] == [d.path for d in q.state.log]


def test_auto16_leaves_what_is_observed_apart_from_its_values() -> None:
    """A masked logit lies a margin below the others; a range of values alone would let masked keys through."""
    q = tree("auto16")
    changed = [decision.path for decision in q.state.log if decision.how == "auto16"]
    assert len(changed) > 20
    assert not [path for path in changed if path.endswith((":mask", ":masked_logits"))]


def test_a_constant_has_the_range_that_it_has_after_a_fold() -> None:
    q: Any = pyquant.prepare(float_model(), Policy.preset("w8a8"))
    norm = q.model.layers[0].input_layernorm
    before = [float(end) for end in norm.site("weight").observer.range()]
    pyquant.algorithms.rotate(q)
    pyquant.calibrate(q, batches(), progress=False)
    assert before != [1.0, 1.0]
    assert [float(end) for end in norm.site("weight").observer.range()] == [1.0, 1.0]
