# SPDX-License-Identifier: Apache-2.0
"""Shows the contents of a .circle file: tensors with their qparams, operators, sizes by type, the biggest constants.

It owns the tables. Reading is native; `--json` prints the same data, like the native program.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from pyquant.cli.main import FINE
from pyquant.cli.options import count
from pyquant.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from pyquant.circle import Model, Tensor

TOP = 10

_count = partial(count, least=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="x.circle")
    parser.add_argument("--json", action="store_true", help="everything as JSON on the standard output")
    parser.add_argument("--tensors", metavar="GLOB", default="*", help="list only the tensors of these names (all)")
    parser.add_argument("--top", metavar="N", type=_count, default=TOP, help="how many constants (%(default)s)")
    parser.add_argument("--summary", action="store_true", help="leave out the tables of tensors and operators")


def run(args: argparse.Namespace) -> int:
    from pyquant import circle

    if args.json:
        sys.stdout.write(circle.inspect(args.file, json=True))
        return FINE
    model = circle.read(args.file)
    listed = [i for i, tensor in enumerate(model.tensors) if fnmatch.fnmatchcase(tensor.name, args.tensors)]
    if not listed and model.tensors:
        raise UsageError(
            f"--tensors {args.tensors!r} matches none of the {len(model.tensors)} tensors; names look like "
            f"{', '.join(repr(tensor.name) for tensor in model.tensors[:3])}"
        )
    floats = sum(tensor.dtype.startswith(("float", "bfloat")) for tensor in model.tensors)
    print(
        f"{args.file}: graph {model.name!r}, {_bytes(model.file_size)}, {len(model.tensors)} tensors ({floats} float), "
        f"{len(model.operators)} operators" + (f"\n{model.description}" if model.description else "")
    )
    if not args.summary:
        _show("tensors", _tensors(model, listed))
        _show("operators", _operators(model))
    _show("operators by name", _counts(model))
    _show("constants by type", _sizes(model))
    count = len(_constants(model))
    _show(f"biggest constants ({min(args.top, count)} of {count})", _biggest(model, args.top))
    return FINE


def _show(title: str, table: Table) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=240, color_system=None, legacy_windows=False).print(table)
    print(f"\n{title}\n" + "\n".join(line.rstrip() for line in out.getvalue().splitlines()))


def _table(*names: str, right: tuple[str, ...] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _tensors(model: Model, listed: list[int]) -> Table:
    table = _table("#", "name", "kind", "type", "shape", "scale", "zero point", "axis", "bytes", right=("#", "bytes"))
    outputs, inputs = set(model.outputs), set(model.inputs)
    for index in listed:
        t = model.tensors[index]
        kind = "input" if index in inputs else "constant" if t.is_constant else "output" if index in outputs else ""
        size = "" if t.data is None else str(t.data.nbytes)
        axis = str(t.axis) if len(t.scale) > 1 else ""
        cells = [t.name, kind, t.dtype, _shape(t), _span(t.scale), _span(t.zero_point), axis, size]
        table.add_row(str(index), *_plain(cells))
    return table


def _operators(model: Model) -> Table:
    table = _table("#", "operator", "inputs", "outputs", "options", right=("#",))
    names = [tensor.name for tensor in model.tensors]
    for number, op in enumerate(model.operators):
        given = ", ".join(names[i] if i >= 0 else "-" for i in op.inputs)
        made = ", ".join(names[i] for i in op.outputs)
        options = ", ".join(f"{key}={value}" for key, value in op.options.items())
        table.add_row(str(number), *_plain([op.name, given, made, options]))
    return table


def _counts(model: Model) -> Table:
    table = _table("operator", "count", right=("count",))
    for name, times in Counter(op.name for op in model.operators).most_common():
        table.add_row(name, str(times))
    return table


def _constants(model: Model) -> list[tuple[int, Tensor]]:
    """(bytes, tensor) of each buffer once, the biggest first; tensors may share one."""
    found = {tensor.buffer: (tensor.data.nbytes, tensor) for tensor in model.tensors if tensor.data is not None}
    return sorted(found.values(), key=lambda each: -each[0])


def _sizes(model: Model) -> Table:
    table = _table("type", "constants", "bytes", "share", right=("constants", "bytes", "share"))
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for size, tensor in _constants(model):
        counts[tensor.dtype] += 1
        sizes[tensor.dtype] += size
    for dtype, size in sizes.most_common():
        table.add_row(dtype, str(counts[dtype]), str(size), f"{100 * size / max(1, sizes.total()):.1f} %")
    return table


def _biggest(model: Model, top: int) -> Table:
    table = _table("name", "type", "shape", "bytes", right=("bytes",))
    for size, tensor in _constants(model)[:top]:
        table.add_row(*_plain([tensor.name, tensor.dtype, _shape(tensor), str(size)]))
    return table


def _shape(tensor: Tensor) -> str:
    sizes = tensor.shape_signature or tensor.shape
    return "x".join("?" if size < 0 else str(size) for size in sizes) or "scalar"


def _span(values: tuple[float, ...] | tuple[int, ...]) -> str:
    """One value, or the least and largest of many and how many."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.6g}"
    low, high = min(values), max(values)
    return (f"{low:.6g}" if low == high else f"{low:.4g} .. {high:.4g}") + f" ({len(values)})"


def _plain(cells: list[str]) -> list[Text]:
    """Text without markup: brackets in a name are kept."""
    from rich.text import Text

    return [Text(cell) for cell in cells]


def _bytes(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"
