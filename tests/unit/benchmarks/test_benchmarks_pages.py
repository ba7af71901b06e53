# SPDX-License-Identifier: Apache-2.0
"""The figures of README.md and docs/performance.md are those that commands measured and that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.growth.__main__ import AXES, PAGE, exponent, table
from benchmarks.growth.measure import STEPS
from benchmarks.pages import BASELINE, ROOT, replaced, tables


def test_the_pages_show_the_committed_ratios() -> None:
    for page, text in tables(json.loads(BASELINE.read_text())).items():
        source = page.read_text()
        assert source == replaced(source, "ratios", text, page), f"run `make bench-pages` for {page.name}"


def test_the_page_shows_the_committed_growth_of_every_axis() -> None:
    folder = PAGE.with_suffix("")
    found = json.loads((folder / "growth.json").read_text())["axes"]
    growth = {axis: {int(size): steps for size, steps in found[axis].items()} for axis in AXES}
    for axis, (sizes, _) in AXES.items():
        assert tuple(growth[axis]) == sizes
        assert f"](performance/{axis}.svg)" in PAGE.read_text()
        assert (folder / f"{axis}.svg").stat().st_size > 1000
    assert PAGE.read_text() == replaced(PAGE.read_text(), "growth", table(growth), PAGE), "run `make bench-growth`"


def test_an_exponent_is_the_slope_at_the_large_end() -> None:
    points = {size: dict.fromkeys(STEPS, 1.0 + size**2) for size in (1, 16, 32, 64)}
    assert exponent(points, "export") == pytest.approx(2, abs=0.01)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(SystemExit, match="needs the lines '<!-- x -->' and '<!-- end x -->' once"):
        replaced("<!-- x -->\n", "x", "", Path("page.md"))
    assert (
        replaced("a\n<!-- x -->\nold\n<!-- end x -->\nb\n", "x", "new", ROOT)
        == "a\n<!-- x -->\nnew\n<!-- end x -->\nb\n"
    )
