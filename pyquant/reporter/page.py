# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs no network: style, script, plotly and the data are inside.

It owns the page's structure; charts are figures.py, layout and behaviour are page.css and page.js.
"""

from __future__ import annotations

import json
import math
from html import escape
from importlib.resources import files
from typing import Any

from pyquant.reporter import figures
from pyquant.reporter.data import ReportData
from pyquant.reporter.sites import SiteReport

# Forbids every network request, also those of the libraries.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def page(data: ReportData) -> str:
    """The HTML text. Raises ImportError, with the install command, when plotly is missing."""
    library: str = figures.plotly("offline").get_plotlyjs()
    worst = data.worst()
    charts = {"chart-layers": figures.layers(data), "chart-output": figures.scatter(data)}
    charts |= {"chart-bytes": figures.layer_bytes(data)} if data.before else {}
    charts |= {f"chart-site-{number}": figures.histogram(site) for number, site in enumerate(worst) if site.counts}
    tables = {"table-sites": _site_table(data.sites)}
    tables |= {"table-tensors": _tensor_table(data)} if data.tensors else {}
    contents = {"figures": {key: json.loads(chart.to_json()) for key, chart in charts.items()}, "tables": tables}
    sections = [
        f"<h1>{escape(data.title)}</h1><p>Float against quantized, module by module and site by site.</p>",
        _numbers(data),
        _section("Summary", "", "<dl>" + "".join(map(_entry, data.rows())) + "</dl>"),
        _section("From input to output", _LAYERS, _chart("chart-layers")),
        '<div class="pair">'
        + _section("Outputs", _OUTPUT, _chart("chart-output"))
        + _section("Bytes by layer", _BYTES, _chart("chart-bytes") if data.before else "<p>no parameters</p>")
        + "</div>",
        _section(f"The {len(worst)} worst sites", _WORST, _worst(worst)),
        _section("Sites", "Every quantization point. Search by words; click a head to sort.", _table("table-sites")),
    ]
    if data.tensors:
        about = f"Every tensor of {data.file_name}. Search by words; click a head to sort."
        sections.append(_section("Tensors of the file", about, _table("table-tensors")))
    return _HTML.format(
        title=escape(data.title),
        policy=escape(POLICY, quote=True),
        style=_text("page.css"),
        body="\n".join(sections),
        # only "</" could end a script element
        data=json.dumps(contents, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
        library=library,
        script=_text("page.js"),
    )


_LAYERS = (
    "How far each module's output is from the float model's, in the order of the calls. SQNR: signal to quantization "
    "noise, more is better. PEIR: largest error as a share of the value range, less is better."
)
_OUTPUT = "A sample of the output's values. On the line they are equal."
_BYTES = "Parameters and constants, without the overhead of a file."
_WORST = (
    "Sites of lowest SQNR of their own, on the float model's values. Blue: the values, counts on a log scale. Dotted "
    "red: the ends of the grid; values beyond are clipped."
)

_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}
<footer>Written by pyquant; this file needs no network.</footer>
</main>
<script type="application/json" id="report-data">{data}</script>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""


def _text(name: str) -> str:
    return (files("pyquant.reporter") / name).read_text(encoding="utf-8")


def _section(title: str, about: str, content: str) -> str:
    intro = f"<p>{escape(about)}</p>" if about else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{content}</section>"


def _chart(name: str) -> str:
    return f'<div class="chart" id="{name}"></div>'


def _entry(row: tuple[str, str]) -> str:
    return f"<div><dt>{escape(row[0])}</dt><dd>{escape(row[1])}</dd></div>"


def _numbers(data: ReportData) -> str:
    output, share = data.output, data.after / data.before if data.before else 1.0
    shown = [
        ("output SQNR", "exact" if output.equal else "-" if output.sqnr is None else f"{output.sqnr:.1f} dB"),
        ("output PEIR", "-" if output.peir is None else f"{output.peir:.2%}"),
        ("of the float parameters' bytes", f"{share:.0%}"),
        *((f"accuracy, {name}", f"{value:.2%}") for name, value in (data.accuracies or {}).items()),
    ]
    cards = "".join(f'<div class="number"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in shown)
    return f'<div class="numbers">{cards}</div>'


def _worst(sites: tuple[SiteReport, ...]) -> str:
    cards = []
    for number, site in enumerate(sites):
        several = f" ({site.scales} channels)" if site.scales > 1 else ""
        lines = (
            f"{site.role}, {site.format}{several}",
            f"SQNR {_number(site.sqnr)} dB, clipped {site.clipped:.3%}, values {site.low:.4g} .. {site.high:.4g}",
            f"grid {site.grid_low:.4g} .. {site.grid_high:.4g}, scale {site.scale}, zero point {site.zero_point}",
        )
        small = "".join(f"<small>{escape(line)}</small>" for line in lines)
        cards.append(f'<div class="site"><h3>{escape(site.path)}</h3>{small}{_chart(f"chart-site-{number}")}</div>')
    return f'<div class="sites">{"".join(cards)}</div>'


def _table(name: str) -> str:
    box = '<input type="search" placeholder="filter" aria-label="filter">'
    return (
        f'<div id="{name}"><div class="bar">{box}<span class="count"></span></div>'
        '<div class="scroll"><table><thead></thead><tbody></tbody></table></div></div>'
    )


def _columns(*named: tuple[str, str]) -> list[dict[str, str]]:
    return [{"title": title, "kind": kind} for title, kind in named]


def _site_table(sites: tuple[SiteReport, ...]) -> dict[str, Any]:
    columns = _columns(
        ("site", "p"), ("role", ""), ("format", ""), ("elements", "n"), ("low", "n"), ("high", "n"), ("scale", "n"),
        ("zero point", "n"), ("clipped", "n"), ("SQNR dB", "n"),
    )  # fmt: skip
    rows = [
        [s.path, s.role, s.format, s.elements, f"{s.low:.4g}", f"{s.high:.4g}", s.scale, s.zero_point,
         f"{s.clipped:.3%}", _number(s.sqnr)]
        for s in sites
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def _tensor_table(data: ReportData) -> dict[str, Any]:
    columns = _columns(
        ("#", "n"), ("tensor", "p"), ("made by", ""), ("type", ""), ("shape", ""), ("scale", "n"), ("zero point", "n"),
        ("bytes", "n"),
    )  # fmt: skip
    rows = [
        [t.index, t.name, t.kind, t.dtype, " x ".join(map(str, t.shape)), t.scale, t.zero_point, t.bytes]
        for t in data.tensors
    ]
    return {"columns": columns, "rows": rows}


def _number(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"
