# SPDX-License-Identifier: Apache-2.0
"""A report's numbers against computations of our own, its page as text, and its page in a real Chromium."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from pathlib import Path

import chromium
import pytest
import torch

import pyquant
from examples.digits import data, model, quant  # noqa: F401
from pyquant import reporter
from pyquant.errors import InputError, PhaseError
from pyquant.models import gemma4
from pyquant.policy import Policy
from pyquant.reporter import ReportData, collect, summary
from pyquant.verify import sqnr_db
from pyquant.wrap import Phase, phase

torch.set_num_threads(1)


@functools.cache
def subject():
    fp = model.DigitsClassifier.load()
    q = pyquant.prepare(fp, Policy.preset("w4a8"))
    pyquant.calibrate(q, data.batches(data.load_split("train")[:48], fp.config), progress=False)
    pyquant.convert(q)
    program = pyquant.export(q, gemma4.VisionProfile(grid=(8, 8)))
    batches = list(data.batches(data.load_split("heldout")[:24], fp.config, batch_size=12))
    return fp, q, program, batches


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[ReportData, Path]:
    _, q, program, batches = subject()
    path = tmp_path_factory.mktemp("report") / "digits <b> \u00e9 #1.html"
    title = "digits </script><b>w4a8"
    found = pyquant.report(q, batches, path, program=program, accuracies={"float": 0.9861}, title=title)
    return found, path


def test_outputs_and_sizes(written):
    found, _ = written
    fp, q, program, batches = subject()
    with torch.no_grad():
        expected, got = (torch.cat([m(**batch) for batch in batches]) for m in (fp, q))
    assert found.output.sqnr == pytest.approx(sqnr_db(expected, got), rel=1e-4)
    extra = 3 * 64  # std_bias, std_scale, and the bias that folding pixels' 2x - 1 into the patch embedder makes
    assert found.before == 4 * (sum(p.numel() for p in fp.parameters()) + extra)
    assert 0.125 * found.before < found.after < 0.2 * found.before
    assert found.file_bytes == len(program.to_bytes())
    assert len(found.tensors) == len(program.graph.tensors)
    assert sum(row.bytes or 0 for row in found.tensors) == program.size
    assert len(found.points) == 240


def test_layers_are_compared_in_order(written):
    found, _ = written
    _, q, _, batches = subject()
    blocks = [layer for layer in found.layers if layer.block]
    assert [layer.name for layer in blocks] == [f"vision.encoder.layers.{i}" for i in range(4)]
    seen = {}
    hook = q.vision.encoder.layers[2].register_forward_hook(lambda m, a, out: seen.update({q.phase: out}))
    with torch.no_grad():
        q(**batches[0])
        with phase(q, Phase.FLOAT):
            q(**batches[0])
    hook.remove()
    expected = sqnr_db(seen[Phase.FLOAT], seen[Phase.QUANTIZED])
    assert blocks[2].sqnr == pytest.approx(expected, rel=1e-4)
    assert found.layers[-1].name == ""


def test_a_site_is_measured_on_the_float_models_values(written):
    found, _ = written
    fp, q, _, batches = subject()
    path = "vision.encoder.layers.1.mlp:gated"
    report = next(site for site in found.sites if site.path == path)
    site = q.vision.encoder.layers[1].mlp.site("gated")
    values = []
    hook = fp.vision.encoder.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, a: values.append(a[0]))
    with torch.no_grad():
        for batch in batches:
            fp(**batch)
    hook.remove()
    x = torch.cat([v.flatten() for v in values])
    low, high = (float((end - site.zero_point) * site.scale) for end in (0, 255))
    rounded = ((x / site.scale).round() + site.zero_point).clamp(0, 255).sub(site.zero_point) * site.scale
    assert report.elements == x.numel()
    assert (report.grid_low, report.grid_high) == pytest.approx((low, high), rel=1e-6)
    assert (report.low, report.high) == pytest.approx((float(x.min()), float(x.max())), rel=1e-4)
    assert report.sqnr == pytest.approx(sqnr_db(x, rounded), abs=0.05)
    beyond = ((x > high + 0.5 * site.scale) | (x < low - 0.5 * site.scale)).double().mean()
    assert report.clipped == pytest.approx(float(beyond), abs=2e-5)
    assert sum(report.counts) == x.numel()
    below = 0
    for edge, count in zip(report.edges[1:], report.counts, strict=True):
        below += count
        assert below == pytest.approx(int((x < edge).sum()), rel=2e-3)


def test_worst_sites_are_the_worst(written):
    found, _ = written
    worst = found.worst()
    assert len(worst) == 10
    assert max(site.sqnr for site in worst) <= min(s.sqnr for s in found.sites if s not in worst)


def test_terminal_says_the_same(written):
    found, _ = written
    text = summary(found)
    assert all(value in text for _, value in found.rows())
    assert all(site.path in text.replace("\n", "") for site in found.worst())
    assert "outputs: float (x) against quantized (y)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_holds_everything_and_names_no_server(written):
    found, path = written
    text = path.read_text(encoding="utf-8")
    head, tail = text.index("<script>"), text.rindex("</script>")
    own = text[:head] + text[text.rindex("<script>") : tail]  # all but plotly itself
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", own)
    assert "<b>w4a8" not in own
    contents = json.loads(text.split('id="report-data">')[1].split("</script>")[0])
    assert len(contents["tables"]["table-tensors"]["rows"]) == len(found.tensors)
    assert list(path.parent.iterdir()) == [path]


def test_without_a_file_and_of_a_model_that_is_exact():
    _, q, _, batches = subject()
    found = collect(q, batches[:1])
    assert not found.tensors
    assert "table-tensors" not in reporter.page(found)
    plain = pyquant.prepare(model.DigitsClassifier.load(), Policy.preset("float"))
    pyquant.convert(plain)
    found = collect(plain, batches[:1])
    assert found.output.equal
    assert math.isinf(found.output.sqnr)
    assert not found.sites
    page = reporter.page(found)
    assert "exact" in page
    assert "no scatter" not in summary(found)


def test_what_cannot_work_says_so(tmp_path, monkeypatch):
    fp, q, _, batches = subject()
    with pytest.raises(InputError, match="got none"):
        collect(q, [])
    with pytest.raises(InputError, match=r"pass \[batch\]"):
        collect(q, batches[0])
    with pytest.raises(PhaseError, match="got DigitsClassifier"):
        collect(fp, batches)
    with pytest.raises(PhaseError, match="before the tree is ready"):
        collect(pyquant.prepare(fp, Policy.preset("w8a8")), batches)
    with pytest.raises(FileNotFoundError, match="create it first"):
        pyquant.report(q, batches[:1], tmp_path / "nowhere" / "x.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'pyquant-circle\[report\]'"):
        pyquant.report(q, batches[:1], tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


# --- in Chromium ---


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    found = chromium.find()
    if isinstance(found, str):
        pytest.skip(found)
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as open_driver:
        yield open_driver


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_chromium(driver, written, tmp_path, width):
    found, path = written
    page = chromium.Page(driver, path)
    page.width(width)
    driver.refresh()
    page.wait("document.documentElement.dataset.ready === 'true'")
    page.collect()
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("data:", path.resolve().as_uri()[:8]))] == []
    drawn = "return [...document.querySelectorAll('.chart')].map(c => [c.id, c.querySelectorAll('.trace').length])"
    charts = dict(page.run(drawn))
    assert set(charts) == {"chart-layers", "chart-output", "chart-bytes", *(f"chart-site-{i}" for i in range(10))}
    assert all(charts.values()), charts
    assert page.run("return document.querySelectorAll('#chart-layers .scatterlayer .point').length") == 2 * len(
        found.layers
    )
    assert page.run("return document.querySelectorAll('#chart-output .point').length") == len(found.points)
    assert page.run("return document.title") == "digits </script><b>w4a8"
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    overlaps = (
        "const names = [...document.querySelectorAll('#chart-layers .x2tick text')];"
        "const ends = names.map(t => t.getBoundingClientRect().right);"
        "return ends.map((end, i) => i ? end - ends[i - 1] : 99)"
    )
    distances = page.run(overlaps)
    assert len(distances) >= 2
    assert min(distances) >= 14, "names of layers lie upon each other"
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_the_search_box_filters_and_heads_sort(driver, written):
    found, path = written
    page = chromium.Page(driver, path)
    page.wait("document.documentElement.dataset.ready === 'true'")

    def search(text):
        script = (
            "const box = document.querySelector('#table-tensors input'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input'));"
            "const rows = [...document.querySelectorAll('#table-tensors tbody tr')];"
            "return [rows.map(row => row.children[1].textContent),"
            "document.querySelector('#table-tensors .count').textContent]"
        )
        return page.run(script, text)

    total = len(found.tensors)
    assert search("")[1] == f"{total} of {total}"
    names, count = search("down_proj constant INT4")
    expected = [t.name for t in found.tensors if "down_proj" in t.name and t.kind == "constant" and t.dtype == "int4"]
    assert names == expected
    assert expected
    assert count == f"{len(expected)} of {total}"
    assert search("no such thing") == [[], f"0 of {total}"]
    search("")
    page.run("document.querySelectorAll('#table-sites th')[9].click()")
    first = page.run("return document.querySelector('#table-sites tbody tr').firstChild.textContent")
    assert first == found.worst(1)[0].path
    page.collect()
    assert page.errors == []
