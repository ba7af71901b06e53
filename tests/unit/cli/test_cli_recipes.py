# SPDX-License-Identifier: Apache-2.0
"""`pyquant recipes`: every recipe, and where it runs as the README says; and `pyquant doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from cli_runs import Done

from pyquant import recipes
from pyquant.cli import doctor
from pyquant.recipes.runtimes import RUNTIMES, VERDICTS

Run = Callable[..., Done]
README = Path(__file__).parents[3] / "README.md"


def test_readme_says_where_each_recipe_runs() -> None:
    """Row by row, the words of VERDICTS."""
    rows = {}
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            rows |= {name.strip(" `"): cells[2:] for name in cells[0].split(",")}
    assert rows == {name: [str(row[each]) for each in ("tico", "luci", "onert")] for name, row in VERDICTS.items()}


def test_each_recipe_has_verdicts() -> None:
    assert set(VERDICTS) == set(recipes.names())
    assert all(tuple(row) == RUNTIMES for row in VERDICTS.values())


@pytest.mark.parametrize("columns", [80, 200])
def test_the_list_fits_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run("recipes")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= columns
    listed = [line.split()[0] for line in done.out.splitlines() if line[:1].isalpha() and "runs" in line.split()]
    assert listed == list(recipes.names())


def test_a_recipe_is_explained_with_its_file(run: Run) -> None:
    done = run("recipes", "w4a16")
    assert done.code == 0
    assert "refused: 138 faults" in done.out
    assert "  - rotate: {where_possible: true}" in done.out
    data = json.loads(run("recipes", "--json").out)
    assert data["w8_onert"]["runs"]["onert"] == "runs, with `--target onert`"
    assert data["w4a16"]["extends"] == "w4a16-fast"
    assert run("recipes", "w4").code == 2


def test_the_doctor_finds_what_is_declared(run: Run) -> None:
    done = run("doctor")
    assert done.code == 0
    for name in ("torch", "transformers", "safetensors", "native operators", "pyquant-circle", "[images]"):
        assert name in done.out


def test_the_doctor_says_how_to_get_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "jsonschema":
            raise metadata.PackageNotFoundError(name)
        return "4.0" if name == "transformers" else "0" if name == "plotly" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    done = run("doctor")
    assert done.code == 1
    assert "not installed\n" + " " * 25 + "pip install 'jsonschema<5,>=4.18'" in done.out
    assert "4.0, wanted <5.25,>=5.5.4" in done.out
    assert "optional, plotly missing\n" + " " * 25 + "pip install 'pyquant-circle[report]'" in done.out
