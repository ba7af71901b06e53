# SPDX-License-Identifier: Apache-2.0
"""Traces as text: an indented record of each call, the side-by-side table, the table of sites.

It owns the text. Printing it is the caller's.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyquant.trace.losses import Loss
from pyquant.trace.pairing import Comparison, Entry
from pyquant.trace.record import PARTS, Call, Trace
from pyquant.trace.sites import SiteRecord, SiteTrace
from pyquant.trace.values import Leaf, Recorded, TensorValue, Tree

WIDE = 400


def render_trace(trace: Trace, calls: Iterable[Call] | None = None) -> str:
    """Each call (all of them, or the ones given) as its title and the indented structure of its values."""
    lines: list[str] = []
    for call in trace if calls is None else calls:
        lines.append(f"{call.title}: {call.type}")
        for part in PARTS:
            value = getattr(call, part)
            if part == "output" or len(value):
                lines += _lines(part, value, "  ")
    return "\n".join(lines) + "\n" if lines else ""


def render_comparison(comparison: Comparison, entries: Iterable[Entry] | None = None, width: int = WIDE) -> str:
    """The side-by-side table (of all entries, or the ones given), then a summary, the problems, and what is unpaired.

    A cell is never truncated: text that does not fit in `width` columns continues on more lines.
    """
    shown = list(comparison if entries is None else entries)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("module", overflow="fold")
    table.add_column("value", overflow="fold")
    table.add_column(f"a: {comparison.model_a}", overflow="fold")
    table.add_column(f"b: {comparison.model_b}", overflow="fold")
    for name in ("mean(a-b)", "min", "max", "std", "PEIR", "SQNR dB", "cosine"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for entry in shown:
        d = entry.difference
        numbers = [None] * 7 if d is None else [d.mean, d.min, d.max, d.std, d.peir, d.sqnr, d.cosine]
        cells = [_title(entry), entry.path, entry.a, entry.b, *map(_number, numbers), entry.status]
        table.add_row(*(Text(cell) for cell in cells))
    return _text(table, width) + "\n\n" + "\n".join(_summary(comparison, shown)) + "\n"


def render_sites(trace: SiteTrace, records: Iterable[SiteRecord] | None = None, width: int = WIDE) -> str:
    """A line for each site (all of them, or the ones given), then how many there are."""
    shown = list(trace if records is None else records)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("site", "role", "format"):
        table.add_column(name, overflow="fold")
    for name in ("scale", "grid", "observed", "used", "clipped", "max error", "SQNR dB"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in shown:
        seen = None if r.low is None or r.high is None else (r.low, r.high)
        cells = [r.path, r.role, r.spec, _span(r.scale), _span(r.grid), _span(seen), _share(r.used)]
        cells += [_share(r.clipped), _number(r.max_error), _number(r.sqnr)]
        table.add_row(*(Text(cell) for cell in cells))
    silent = sum(not record.calls for record in trace)
    summary = f"{len(trace)} sites, {trace.batches} batch{'es' if trace.batches != 1 else ''}"
    summary += f", {len(shown)} shown" if len(shown) != len(trace) else ""
    summary += f", {silent} reached by no value" if silent else ""
    return _text(table, width) + f"\n\n{summary}\n"


def render_losses(found: Iterable[Loss], width: int = WIDE) -> str:
    """A line for each call: SQNR of its noisiest input and output, and the share of the signal that the call itself
    lost."""
    rows = [
        [loss.title, loss.problem or "", *map(_number, (loss.sqnr_in, loss.sqnr_out)), _share(loss.lost)]
        for loss in found
    ]
    return table(("module", "problem"), ("SQNR in dB", "SQNR out dB", "lost here"), rows, width) + "\n"


def table(words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]], width: int = WIDE) -> str:
    """Text columns aligned left and wrapped where they do not fit, number columns aligned right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in words:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, row))
    return _text(made, width)


def _text(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _span(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "-"
    low, high = (f"{value:.3g}" for value in ends)
    return low if low == high else f"{low} .. {high}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _summary(comparison: Comparison, shown: list[Entry]) -> Iterator[str]:
    worst = next(iter(comparison.worst(1)), None)
    counts = dict.fromkeys(("equal", "differs", "same", "not kept", "error"), 0)
    for entry in comparison:
        counts[entry.status] += 1
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    yield f"{len(comparison)} values compared ({summary or 'none'})" + (
        f", {len(shown)} shown" if len(shown) != len(comparison) else ""
    )
    if worst is not None and worst.difference is not None:
        yield f"largest PEIR {_number(worst.difference.peir)} at {_title(worst)} {worst.path}"
    for entry in comparison.errors:
        yield f"error: {_title(entry)} {entry.path}: {entry.problem}"
    for side, names in (("a", comparison.only_a), ("b", comparison.only_b)):
        if names:
            yield f"only in {side}: {', '.join(name or '(model)' for name in names)}"


def _lines(name: str, value: Recorded, indent: str) -> Iterator[str]:
    if isinstance(value, Tree):
        yield f"{indent}{name}: {value.type}" + (f" of {len(value)}" if value.kind == "sequence" else "")
        for key, item in value.items:
            yield from _lines(key, item, indent + "  ")
    elif isinstance(value, Leaf):
        known = value.value is not None
        yield f"{indent}{name}: " + (f"{value.type} {value.value!r}" if known else value.type)
    else:
        yield f"{indent}{name}: {tensor_line(value)}"


def tensor_line(value: TensorValue) -> str:
    """`Tensor float32 (1, 8) mean=0.1 min=0 max=1 std=0.2`."""
    text = f"{value.type} {value.dtype} {value.shape}"
    found = value.statistics
    if found is None:
        return text + " (no data)"
    if found.mean is not None:
        names = ("mean", "min", "max", "std")
        text += "".join(f" {name}={_number(getattr(found, name))}" for name in names)
    return text + (f" nonfinite={found.nonfinite}" if found.nonfinite else "")


def _title(entry: Entry) -> str:
    return (entry.module or "(model)") + (f" #{entry.repeat + 1}" if entry.repeat else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
