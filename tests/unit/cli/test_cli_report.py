# SPDX-License-Identifier: Apache-2.0
"""`pyquant report` and `pyquant sensitivity` on the tiny models: what they write, print and return."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

import pyquant
from pyquant import models
from pyquant.cli.main import main
from pyquant.models import gemma4
from pyquant.policy import Policy
from pyquant.recipe import Recipe
from pyquant.sensitivity import Sensitivity

torch.set_num_threads(1)


def test_report_writes_a_page_and_says_the_same(tmp_path, capsys):
    made = models.by_name("gemma4").example
    model = made.tiny_model()
    batch = made.example_inputs(model)
    q = pyquant.prepare(model, Policy.preset("w8a16"))
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    program = pyquant.export(q, gemma4.VisionProfile(pixel_position_ids=batch["pixel_position_ids"]))
    program.save(tmp_path / "x.circle")

    out = tmp_path / "r.html"
    words = ["report", "--model", "tiny:gemma4", "--recipe", "w8a16", "--circle", str(tmp_path / "x.circle")]
    assert main([*words, "--accuracy", "float=0.5", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Gemma4VisionModel, w8a16" in text
    assert "50.00%" in text
    assert f"wrote {out}" in text
    with torch.no_grad():
        expected = pyquant.verify.sqnr_db(model(**batch).last_hidden_state, q(**batch).last_hidden_state)
    printed = float(re.search(r"output SQNR +([\d.]+) dB", text)[1])
    assert printed == pytest.approx(expected, abs=0.06)
    page = json.loads(out.read_text(encoding="utf-8").split('id="report-data">')[1].split("</script>")[0])
    assert len(page["tables"]["table-tensors"]["rows"]) == len(program.graph.tensors)


def test_report_of_a_threshold_and_of_mistakes(tmp_path, capsys):
    words = ["report", "--model", "tiny:gemma4", "--quiet", "--out", str(tmp_path / "r.html")]
    assert main([*words, "--fail-above", "SQNR=90"]) == 1
    assert "output: SQNR" in capsys.readouterr().out
    assert main([*words, "--accuracy", "float=98"]) == 2
    assert "a share in [0, 1]" in capsys.readouterr().err
    assert main([*words, "--circle", str(tmp_path / "none.circle")]) == 2
    assert main([*words[:-1], str(tmp_path / "no" / "r.html")]) == 2
    assert "create it first" in capsys.readouterr().err


def test_sensitivity_prints_the_order_and_writes_a_policy_that_holds_the_budget(tmp_path, capsys):
    policy, data = tmp_path / "mixed.yaml", tmp_path / "s.json"
    words = ["sensitivity", "--model", "tiny:gemma4", "--recipe", "w4a8-fast", "--top", "3", "--json", str(data)]
    assert main([*words, "--mixed", str(policy), "--budget", "8.0"]) == 0
    text = capsys.readouterr().out
    found = Sensitivity.load(data)
    assert [g.name for g in found.ranked()[:3]] == [line.split()[1] for line in text.splitlines()[2:5]]
    assert found.policy_of(found.choose(budget=8.0, widths=(8, 16))) == Policy.load(policy)
    report = ["report", "--model", "tiny:gemma4", "--recipe", "w4a8-fast", "--out", str(tmp_path / "r.html")]
    sqnr = []
    for more in ([], ["--policy", str(policy)]):
        assert main([*report, *more]) == 0
        sqnr.append(float(re.search(r"output SQNR +([\d.]+) dB", capsys.readouterr().out)[1]))
    assert sqnr[1] > sqnr[0] + 6
    assert main([*words, "--worst", "3"]) == 2
    assert "--mixed FILE goes with" in capsys.readouterr().err


def test_sensitivity_of_a_recipe_with_steps_measures_its_decided_weights(tmp_path, capsys):
    mixed, data = tmp_path / "mixed.yaml", tmp_path / "s.json"
    words = ["sensitivity", "--model", "tiny:gemma4", "--recipe", "w4a16", "--groups", "site", "--json", str(data)]
    assert main([*words, "--mixed", str(mixed), "--worst", "2"]) == 0
    found = Sensitivity.load(data)
    assert found.settled == ()
    ranked = found.ranked()
    assert all(math.isfinite(group.damage.sqnr) for group in ranked if group.bits == 4)
    assert ranked[0].name.endswith(":weight"), "4-bit weights cost more than 16-bit activations"
    recipe = Recipe.load(mixed)
    assert recipe.steps == Recipe.preset("w4a16").steps
    assert recipe.policy == found.policy_of(found.choose(worst=2))
    assert f"wrote {mixed}: 2 groups wider" in capsys.readouterr().out
