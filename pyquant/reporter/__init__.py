# SPDX-License-Identifier: Apache-2.0
"""The report about one quantized model: `pyquant.report(q, batches, "report.html")`.

It owns measuring and showing. The package is `reporter`, because `pyquant.report` is the function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyquant import files
from pyquant.reporter.data import Program, ReportData, collect
from pyquant.reporter.page import page
from pyquant.reporter.terminal import summary
from pyquant.wrap.base import QModule

__all__ = ["ReportData", "collect", "page", "report", "summary"]


def report(
    q: QModule,
    batches: Iterable[Any],
    path: str | Path = "report.html",
    *,
    program: Program | None = None,
    accuracies: Mapping[str, float] | None = None,
    title: str | None = None,
    reference: QModule | None = None,
) -> ReportData:
    """Write one HTML file about a converted tree, which needs no network, and return the numbers that it shows.

    batches: as calibrate takes them, a few; the model runs on each float and quantized. program: a CircleProgram or the
    path of its file, whose tensors are listed. accuracies: what you measured, by name, in [0, 1]. reference: the tree
    before its weights were decided (pyquant.undecided.Undecided), which is then the float side; without one, weights
    that are on their grid already are compared with themselves, and counted.
    `pyquant.reporter.summary(data)` is the same content as text. Raises PhaseError before convert, InputError for no
    batches, CircleError for an unreadable file, ImportError (with the install command) when plotly is missing.
    """
    data = collect(q, batches, program=program, accuracies=accuracies, title=title, reference=reference)
    files.whole_text(Path(path), page(data))
    return data
