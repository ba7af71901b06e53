# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/ are true: code blocks run, options of commands exist, links lead somewhere, the table holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import pyquant
from examples.digits import vlm, vlm_data
from pyquant.cli import main as cli
from pyquant.models import qwen3_vl

ROOT = Path(__file__).parents[2]
PAGES = {
    str(page.relative_to(ROOT)): page for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
BLOCKS = {name: re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL) for name, page in PAGES.items()}
RECIPES = sorted(recipe.stem for recipe in (ROOT / "pyquant" / "recipes").glob("*.yaml"))
PROFILE = qwen3_vl.Profile(max_seq_len=48, image_grids=((1, 4, 8), (1, 4, 12), (1, 8, 8)), prefill_lengths=(40,))


def commands() -> list[tuple[str, str]]:
    """Every line of a page that calls `pyquant VERB --...`, without its comment."""
    found = []
    for name, page in PAGES.items():
        for line in page.read_text("utf-8").splitlines():
            if match := re.match(r"    (pyquant [a-z]+ .*?)(?: {2,}#.*)?$", line):
                found.append((name, match[1]))
    return found


def rows() -> dict[str, list[str]]:
    """recipe -> cells of README's table of runtimes: TICO, luci, onert."""
    lines = [line for line in PAGES["README.md"].read_text("utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("` "): row[2:] for row in cells for name in row[0].split(",")}


@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_code_of_a_page_runs(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[name]:
        exec(compile(block, name, "exec"), names)
    if name == "docs/python-api.md":
        assert (tmp_path / "digits_vision.circle").is_file()
        assert (tmp_path / "llama_w8a16" / "manifest.json").is_file()
        assert "exported program equals eager" in capfd.readouterr().out


def test_the_pages_have_code() -> None:
    assert {name for name, blocks in BLOCKS.items() if blocks} == {"docs/python-api.md", "docs/recipes.md"}


@pytest.mark.parametrize(("name", "command"), commands())
def test_the_options_of_a_command_exist(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = shlex.split(command)[1]
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    helped = capsys.readouterr().out
    options = re.findall(r"(?<= )--[a-z-]+", command)
    assert [option for option in options if option not in helped] == [], name


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:docs|examples|tests|pyquant|csrc|benchmarks|schema)/[\w/.-]+)`", text)
    assert [link for link in links if not (PAGES[name].parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_table_has_every_recipe() -> None:
    assert sorted(rows()) == RECIPES
    for recipe in RECIPES:
        assert re.search(rf"^\| (.*, )?`{recipe}`(,.*)? \|", PAGES["docs/recipes.md"].read_text("utf-8"), re.MULTILINE)


def test_the_commands_of_the_first_screen_stay() -> None:
    first = PAGES["README.md"].read_text("utf-8").splitlines()[:40]
    assert first[first.index("    make demo") + 1] == "    make test"
    assert any(line.startswith("    pyquant quantize --model ") for line in first)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_of_runtimes_is_true(recipe: str, tmp_path: Path) -> None:
    target: Any = "onert" if recipe.endswith("_onert") or recipe == "float" else "circle"
    q: Any = pyquant.quantize(vlm.load_model(), list(vlm_data.calibration_batches(32)), recipe)
    pyquant.export_bundle(q, tmp_path / "bundle", PROFILE, target=target)
    tico, luci, onert = rows()[recipe]
    for cell, checked in ((luci, "luci"), (onert, "onert")):
        written = re.search(r"(\d+) faults", cell)
        faults = [fault for file in tmp_path.glob("bundle/*.circle") for fault in pyquant.circle.check(file, checked)]
        assert len(faults) == (int(written[1]) if written else 0), checked
    if tico == "runs":
        question = vlm_data.inputs(vlm_data.questions("heldout", 1, seed=3))
        with pyquant.verify.Session(tmp_path / "bundle") as session:
            tokens = session.generate(**question, max_new_tokens=4)
        assert tokens.equal(q.generate(**question, max_new_tokens=4, do_sample=False))
