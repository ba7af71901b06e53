# SPDX-License-Identifier: Apache-2.0
"""benchmarks/compare.py: a ratio that fell by more than a quarter is a fault, and no guard goes in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CPU = "a CPU, 2 CPUs"


def result(
    path: Path, ratios: dict[str, dict[str, float]], *, short: tuple[str, ...] = (), only_short: bool = False
) -> Path:
    """What `make bench` writes, with a spread of +-2 %."""
    benchmarks = [
        {
            "group": group,
            "extra_info": {
                "short": group in short,
                "rivals": {name: {"ratio": r, "low": 0.98 * r, "high": 1.02 * r} for name, r in rivals.items()},
            },
        }
        for group, rivals in ratios.items()
        if not only_short or group in short
    ]
    about: dict[str, Any] = {"pyquant": {"cpu": CPU, "short": only_short}}
    path.write_text(json.dumps({"machine_info": about, "benchmarks": benchmarks}))
    return path


def compare(*args: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"another CPU": {"x": {"short": True, "ratios": {"copy": 9.0}}}}))
    before = result(
        tmp_path / "before.json", {"x": {"aten": 4.0, "copy": 1.0, "clone": 9.0}, "y": {"TICO": 8.0}}, short=("x",)
    )
    assert compare(before, "--baseline", path, "--update")[0] == 0
    assert set(json.loads(path.read_text())) == {"another CPU", CPU}  # the other machine's table stays
    return path


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({"x": {"aten": 3.1, "copy": 0.8}, "y": {"TICO": 99.0}}, []),
        ({"x": {"aten": 2.8, "copy": 1.0}, "y": {"TICO": 5.0}}, ["x: 4.00x of aten", "y: 8.00x of TICO", "-38%"]),
        ({"x": {"aten": 4.0, "copy": 1.0, "clone": 0.1}, "y": {"TICO": 8.0}}, []),
        ({"x": {"aten": 4.0}, "y": {"TICO": 8.0}}, ["x: the run lacks the rival 'copy'"]),
        ({"x": {"aten": 4.0, "copy": 1.0}}, ["y: the run lacks it"]),
        ({"x": {"aten": 4.0, "copy": 1.0}, "y": {"TICO": 8.0}, "z": {"copy": 1.0}}, ["z: the baseline lacks it"]),
    ],
    ids=["holds", "fell", "clone", "no-rival", "no-group", "new"],
)
def test_ratios_are_held(tmp_path: Path, baseline: Path, ratios: dict[str, dict[str, float]], words: list[str]) -> None:
    code, said = compare(result(tmp_path / "now.json", ratios, short=("x",)), "--baseline", baseline)
    assert code == (1 if words else 0), said
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == max(1, len(words) - any("%" in word for word in words))


def test_the_short_form_needs_its_own_benchmarks_alone_and_the_best_of_two_runs_counts(
    tmp_path: Path, baseline: Path
) -> None:
    bad = result(tmp_path / "1.json", {"x": {"aten": 2.0, "copy": 1.0}}, short=("x",), only_short=True)
    good = result(tmp_path / "2.json", {"x": {"aten": 3.9, "copy": 0.1}}, short=("x",), only_short=True)
    assert compare(bad, "--baseline", baseline)[0] == 1
    assert compare(good, "--baseline", baseline)[0] == 1
    assert compare(bad, good, "--baseline", baseline)[0] == 0
    code, said = compare(bad, "--baseline", baseline, "--update")
    assert (code, "needs a whole run" in said) == (1, True)


def test_another_machine_is_shown_and_not_held(tmp_path: Path) -> None:
    code, said = compare(result(tmp_path / "1.json", {"x": {"aten": 0.1}}), "--baseline", tmp_path / "none.json")
    assert (code, "no baseline for" in said) == (0, True)


def test_a_file_that_is_no_result_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    code, said = compare(tmp_path / "x.json")
    assert code == 1
    assert said.count("\n") == 1
    assert "no result of these benchmarks" in said
