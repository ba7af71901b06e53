# SPDX-License-Identifier: Apache-2.0
"""The charts of a report as plotly figures: layers, histograms of sites, scatter of outputs, bytes.

It owns the charts; the numbers are data.py, the place of a chart on the page is page.py.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from pyquant.reporter.data import Layer, ReportData
from pyquant.reporter.sites import SiteReport

BLUE, ORANGE, GREY, RED = "#2563eb", "#d97706", "#94a3b8", "#dc2626"
CEILING = 120.0  # dB; exact layers are drawn here


def plotly(part: str = "graph_objects") -> Any:
    """A module of plotly. Raises ImportError with the install command."""
    try:
        return importlib.import_module(f"plotly.{part}")
    except ImportError as error:
        raise ImportError(
            f"pyquant.report draws with plotly, which is not installed ({error}); run: pip install "
            "'pyquant-circle[report]'"
        ) from error


def _layout(height: int, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "template": "plotly_white",
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 28, "b": 40},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1e293b"},
        # in the margin, so that it covers no chart
        "legend": {"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 1, "yanchor": "top"},
        "hoverlabel": {"align": "left"},
    }
    return {**base, **more}


def layers(data: ReportData) -> Any:
    """SQNR above, PEIR below, from input to output in the order of the calls."""
    go = plotly()
    figure = plotly("subplots").make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    numbered = list(enumerate(data.layers))
    leaves = [(i, layer) for i, layer in numbered if layer.leaf]
    blocks = [(i, layer) for i, layer in numbered if layer.block and not layer.leaf]
    others = [(i, layer) for i, layer in numbered if not layer.block and not layer.leaf]
    kinds = (
        ("operations", leaves, BLUE, "lines+markers", 4),
        ("modules", others, GREY, "markers", 6),
        ("layers", blocks, ORANGE, "markers", 10),
    )
    for name, chosen, color, mode, size in kinds:
        if not chosen:
            continue
        x = [i for i, _ in chosen]
        hover = [_hover(layer) for _, layer in chosen]
        marker = {"size": size, "color": color, "symbol": "diamond" if name == "layers" else "circle"}
        common = {
            "x": x,
            "mode": mode,
            "marker": marker,
            "line": {"width": 1},
            "name": name,
            "legendgroup": name,
            "text": hover,
            "hovertemplate": "%{text}<extra></extra>",
        }
        figure.add_trace(go.Scatter(y=[min(layer.sqnr, CEILING) for _, layer in chosen], **common), row=1, col=1)
        floor = [max(layer.peir, 1e-8) for _, layer in chosen]
        figure.add_trace(go.Scatter(y=floor, showlegend=False, **common), row=2, col=1)
    figure.update_yaxes(title_text="SQNR, dB", row=1, col=1)
    figure.update_yaxes(title_text="PEIR", type="log", exponentformat="power", dtick=1, row=2, col=1)
    ticks = _ticks(data.layers)
    places, names = [i for i, _ in ticks], [text for _, text in ticks]
    figure.update_xaxes(tickvals=places, ticktext=names, tickangle=-40, automargin=True)
    figure.update_layout(_layout(540, margin={"l": 56, "r": 16, "t": 56, "b": 40}))
    return figure


def _hover(layer: Layer) -> str:
    name = layer.name or "(model)"
    return f"{name}<br>{layer.type}<br>SQNR {_db(layer.sqnr)}<br>PEIR {layer.peir:.3%}"


def _ticks(found: tuple[Layer, ...]) -> list[tuple[int, str]]:
    """At most a dozen ticks: layers, else calls at equal distances."""
    places = [(i, layer.name) for i, layer in enumerate(found) if layer.block and not layer.leaf]
    places = places or [(i, layer.name or "(model)") for i, layer in enumerate(found)]
    step = max(1, math.ceil(len(places) / 12))
    return [(i, ".".join(name.split(".")[-2:])) for i, name in places[::step]]


def histogram(site: SiteReport) -> Any:
    """Values of one site in blue, the ends of its grid in red."""
    go = plotly()
    widths = [b - a for a, b in zip(site.edges, site.edges[1:], strict=False)]
    middles = [a + width / 2 for a, width in zip(site.edges, widths, strict=False)]
    bars = go.Bar(x=middles, y=list(site.counts), width=widths, marker={"color": BLUE, "line": {"width": 0}},
                  hovertemplate="%{x:.4g}: %{y} values<extra></extra>")  # fmt: skip
    figure = go.Figure([bars])
    for end in (site.grid_low, site.grid_high):
        figure.add_vline(x=end, line={"color": RED, "width": 1.5, "dash": "dot"})
    low, high = min(site.low, site.grid_low), max(site.high, site.grid_high)
    room = (high - low or 1.0) * 0.04
    figure.update_xaxes(range=[low - room, high + room], nticks=6)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    figure.update_layout(_layout(190, margin={"l": 44, "r": 12, "t": 8, "b": 28}, showlegend=False, bargap=0))
    return figure


def scatter(data: ReportData) -> Any:
    """Outputs: float along x, quantized along y, and the line where the two are equal."""
    go = plotly()
    x, y = ([point[axis] for point in data.points] for axis in (0, 1))
    low, high = min([*x, *y], default=0.0), max([*x, *y], default=1.0)
    ends, line = [low, high], {"color": GREY, "width": 1}
    same = go.Scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip")
    dots = go.Scatter(x=x, y=y, mode="markers", marker={"size": 5, "color": BLUE, "opacity": 0.45}, name="outputs",
                      hovertemplate="float %{x:.5g}<br>quantized %{y:.5g}<extra></extra>")  # fmt: skip
    figure = go.Figure([same, dots])
    figure.update_xaxes(title_text="float")
    figure.update_yaxes(title_text="quantized")
    figure.update_layout(_layout(420, showlegend=False, margin={"l": 56, "r": 16, "t": 12, "b": 44}))
    return figure


def layer_bytes(data: ReportData) -> Any:
    """Bars, float and quantized, a pair a layer; the first layer on top."""
    go = plotly()
    shown = [layer for layer in data.bytes if layer.before]
    names = [layer.name for layer in shown]
    figure = go.Figure()
    for label, color, values in (
        ("quantized", BLUE, [layer.after for layer in shown]),
        ("float", GREY, [layer.before for layer in shown]),
    ):
        figure.add_trace(go.Bar(y=names, x=values, name=label, orientation="h", marker={"color": color},
                                hovertemplate="%{y}<br>" + label + " %{x:,} bytes<extra></extra>"))  # fmt: skip
    figure.update_yaxes(range=[len(shown) - 0.5, -0.5], automargin=True, ticksuffix=" ")
    figure.update_xaxes(title_text="bytes", nticks=5)
    room = {"l": 56, "r": 16, "t": 44, "b": 40}
    figure.update_layout(_layout(max(200, 34 * len(shown) + 126), barmode="group", bargap=0.3, margin=room))
    return figure


def _db(value: float) -> str:
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f} dB"
