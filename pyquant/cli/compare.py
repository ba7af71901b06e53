# SPDX-License-Identifier: Apache-2.0
"""Compares two saved traces: folders (pyquant trace --save), their JSON, or .safetensors files.

Two .circle files are compared too: each difference is a line. It owns reading the two; comparing traces is
pyquant.trace, comparing files is native.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import files
from pyquant.cli.comparison import METRICS, exit_code
from pyquant.cli.main import FINE, FOUND
from pyquant.cli.options import count
from pyquant.cli.thresholds import add_fail_above
from pyquant.errors import UsageError

if TYPE_CHECKING:
    from pyquant.trace import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the reference")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--worst", metavar="N", type=count, help="show only the N values of largest PEIR")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the comparison as JSON; - is standard output")
    parser.add_argument("--parts", nargs="+", choices=("inputs", "kwargs", "output"), default=["output"])
    add_fail_above(parser, METRICS)


def run(args: argparse.Namespace) -> int:
    if args.a.endswith(".circle") or args.b.endswith(".circle"):
        return _circle_files(args)
    from pyquant.trace import compare, render_comparison

    comparison = compare(_read(args.a), _read(args.b), parts=args.parts, loose_shapes=True)
    text = comparison.to_json()
    if str(args.json) == "-":
        print(text, end="")
    else:
        if args.json is not None:
            files.whole_text(args.json, text)
        print(render_comparison(comparison, None if args.worst is None else comparison.worst(args.worst)), end="")
    return exit_code(comparison, args.fail_above)


def _circle_files(args: argparse.Namespace) -> int:
    from pyquant import circle

    if not (args.a.endswith(".circle") and args.b.endswith(".circle")):
        raise UsageError(f"a .circle file is compared with another one, not {args.a} with {args.b}")
    if args.fail_above:
        raise UsageError("--fail-above is for traces; for .circle files any difference gives exit code 1")
    lines = circle.diff(args.a, args.b)
    print("".join(f"{line}\n" for line in lines) or "the files are equal\n", end="")
    return FOUND if lines else FINE


def _read(name: str) -> Trace:
    """A trace of the form that its name has. Raises UsageError, TraceError or OSError."""
    from pyquant.trace import Trace

    path = Path(name)
    if path.is_dir():
        return Trace.load(path)
    if not path.exists():
        raise UsageError(f"{name!r} does not exist; expected a trace folder, its trace.json, or a .safetensors file")
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.name == "trace.json" and (path.parent / "tensors").is_dir():
        return Trace.load(path.parent)
    return Trace.from_json(_without_tensors(name, files.text(path, "the trace", UsageError)))


def _without_tensors(name: str, text: str) -> str:
    """The JSON of a trace without its tensors: only structure and statistics are compared.

    Raises UsageError for what `pyquant trace --json` writes, which has two traces.
    """
    try:
        data = json.loads(text, object_hook=_keyless)
    except json.JSONDecodeError as error:
        raise UsageError(f"{name!r} is no trace: not JSON ({error.msg}, line {error.lineno})") from error
    if isinstance(data, dict) and str(data.get("format", "")).startswith("pyquant-trace-report"):
        raise UsageError(
            f"{name!r} is a report of both traces and their comparison; compare the folders that "
            "`pyquant trace --save DIR` writes, DIR/float and DIR/quantized"
        )
    return json.dumps(data)


def _keyless(item: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k != "key"} if "tensor" in item else item


def _tensors(path: Path) -> Trace:
    """The tensors of a file as the outputs of modules of their names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pyquant.trace import Call, Trace, Tree
    from pyquant.trace.values import describe_tensor

    if why := files.absent(path):
        raise UsageError(f"{str(path)!r} {why}")
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{str(path)!r} is no safetensors file: {error}") from error
    trace = Trace(path.name)
    for name, tensor in sorted(loaded.items()):
        value = replace(describe_tensor(tensor), key=trace.store.put(tensor))
        none = Tree("tuple", "sequence", ())
        trace.calls.append(Call(name, "Tensor", 0, none, Tree("dict", "mapping", ()), value))
    return trace
