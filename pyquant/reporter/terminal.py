# SPDX-License-Identifier: Apache-2.0
"""The same report for the terminal: summary, worst sites and layers as tables, the outputs as a scatter plot.

It owns the text; the numbers are data.py.
"""

from __future__ import annotations

import importlib
import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyquant.reporter.data import ReportData

WIDTH = 100


def summary(data: ReportData, width: int = WIDTH, count: int = 10) -> str:
    """Text of `width` columns. Without plotext a line replaces the plot."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, legacy_windows=False)
    table = Table(box=None, show_header=False, title=data.title, title_justify="left", pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for what, value in data.rows():
        table.add_row(Text(what), Text(value))
    console.print(table)
    console.print(_sites(data, count))
    console.print(_layers(data, count))
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return f"{text}\n{_scatter(data, width)}\n"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    table.add_column(columns[0], overflow="fold", ratio=1)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _sites(data: ReportData, count: int) -> Table:
    worst = data.worst(count)
    title = f"\nthe {len(worst)} worst sites of {len(data.sites)}"
    table = _table(title, "site", "type", "SQNR dB", "clipped", "low", "high")
    for site in worst:
        numbers = (f"{site.sqnr:.1f}", f"{site.clipped:.3%}", f"{site.low:.4g}", f"{site.high:.4g}")
        table.add_row(Text(site.path), site.format.split(" ")[0], *numbers)
    return table


def _layers(data: ReportData, count: int) -> Table:
    blocks = [layer for layer in data.layers if layer.block and not layer.leaf]
    shown = blocks or sorted(data.layers, key=lambda layer: layer.sqnr)[:count]
    table = _table("\nlayers from input to output" if blocks else "\nthe worst modules", "module", "SQNR dB", "PEIR")
    for layer in shown:
        table.add_row(Text(layer.name or "(model)"), f"{layer.sqnr:.1f}", f"{layer.peir:.3%}")
    return table


def _scatter(data: ReportData, width: int) -> str:
    try:
        plotext = importlib.import_module("plotext")
    except ImportError:
        return "no scatter plot: plotext is not installed (pip install 'pyquant-circle[report]')"
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(width, 90), 22)
    plotext.scatter([x for x, _ in data.points], [y for _, y in data.points], marker="hd")
    plotext.title("outputs: float (x) against quantized (y)")
    text: str = plotext.uncolorize(plotext.build())
    return text
