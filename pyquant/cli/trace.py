# SPDX-License-Identifier: Apache-2.0
"""Records every module of a float model and of its wrappers on the same inputs, and shows the two side by side.

It prints the model's inputs, the record of each call, and the difference of each output. Without
--enable-quantization the wrappers compute in float, and the two must agree to rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import files
from pyquant.cli.checkpoints import DTYPES
from pyquant.cli.comparison import METRICS, exit_code
from pyquant.cli.main import FINE, FOUND
from pyquant.cli.thresholds import add_fail_above
from pyquant.errors import UsageError
from pyquant.recipes import names as recipes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyquant.trace import Call, Comparison, SiteTrace, Trace
    from pyquant.verify.tensors import TensorReport
    from pyquant.wrap import QModule

FORMAT = "pyquant-trace-report-1"
# PEIR below which sums in another order stay, by the type that the model computes in.
ROUNDING = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
NO_FILE = Path("-")
WORST = 5
IN_MEMORY = 2**28  # bytes of parameters up to which the tensors of a trace are kept in RAM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="checkpoint folder or hub name; or tiny:gemma4, tiny:llama ...")
    add("--image", nargs="+", action="extend", default=[], metavar="FILE", help="image files, in order")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--prompt", metavar="TEXT", help="text, through the model's tokenizer (tiny models read bytes)")
    words.add_argument("--ids", nargs="+", type=int, metavar="ID", help="token ids instead of a text")
    add("--no-trace-unquantized", action="store_true", help="print no records of the float model")
    add("--no-trace-quantized", action="store_true", help="print no records of the wrappers")
    add("--no-side-by-side", action="store_true", help="print no table of differences")
    add("--enable-quantization", action="store_true", help="quantize the wrappers, calibrated on these inputs")
    add("--recipe", choices=recipes(), help="formats with --enable-quantization (default: w8a8)")
    add(
        "--quantized",
        type=Path,
        metavar="FOLDER",
        help="wrappers saved before (OUT/quantized of pyquant quantize) instead of --enable-quantization",
    )
    add(
        "--sites",
        action="store_true",
        help="with --enable-quantization or --quantized: also what each site did to its values",
    )
    add(
        "--circle",
        nargs="?",
        type=Path,
        const=NO_FILE,
        metavar="FILE",
        help="with --enable-quantization or --quantized: also run the model's Circle file (or FILE in its place, "
        "exported whole for these inputs; a bundle's files are parts) and compare its tensors with eager's",
    )
    add("--interesting-modules", nargs="+", action="extend", default=[], metavar="GLOB", help=_INTERESTING)
    add(
        "--breakpoint-on-interesting-modules",
        action="store_true",
        help="stop in the debugger after each of their calls",
    )
    add("--dtype", choices=DTYPES, default="float32", help="the type that the models run in (%(default)s)")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="all of it as JSON; - is standard output (the text: standard error)",
    )
    add("--save", type=Path, metavar="DIR", help="keep both traces, tensors included, as DIR/float and DIR/quantized")
    add_fail_above(parser, METRICS)


_INTERESTING = "print only the records, tensors and differences of these modules, such as '*.mlp'"


def run(args: argparse.Namespace) -> int:
    from pyquant import wrap
    from pyquant.cli import trace_circle as circle
    from pyquant.cli import trace_run as runs
    from pyquant.trace import compare, counterparts, sites
    from pyquant.wrap import Phase

    _check(args)
    text = sys.stdout if args.json != Path("-") else sys.stderr

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    fp = runs.load(args.model, args.dtype)
    names = [name for name, _ in fp.named_modules()]
    shown = runs.chosen(names, args.interesting_modules) if args.interesting_modules else set(names)
    stops = shown if args.breakpoint_on_interesting_modules else set()
    batch = runs.inputs(args, fp, note)
    print(_inputs(args.model, fp, batch), file=text)
    q = _wrappers(args, fp, batch, note)
    pairs = counterparts(fp, q)
    phase = Phase.QUANTIZED if _rounds(args) else Phase.FLOAT
    with ExitStack() as stack, wrap.phase(q, phase):
        folder = _folder(args, fp, stack)
        mine = [name for name, path in pairs.items() if path in shown]
        left = runs.record(fp, batch, None, sorted(shown), folder and folder / "float", stops)
        right = runs.record(q, batch, sorted(pairs), mine, folder and folder / "quantized", {n for n in mine if stops})
        if silent := sorted(shown - {call.name for call in left}) if args.interesting_modules else []:
            note(f"these inputs do not call {len(silent)} of the interesting modules, such as {silent[0]!r}")
        comparison = _only(compare(left, right, pairs, loose_shapes=True), shown)
        found = sites(q, batch) if args.sites else None
        graphs = circle.measured(fp, q, batch, args.circle if args.circle != NO_FILE else None) if args.circle else {}
        report = _Report(args, left, right, comparison, found, shown, pairs, graphs)
        print(report.text(), end="", file=text)
        if args.json is not None:
            report.write(batch)
    return _verdict(args, comparison)


def _rounds(args: argparse.Namespace) -> bool:
    return args.enable_quantization or args.quantized is not None


def _wrappers(
    args: argparse.Namespace, fp: nn.Module, batch: dict[str, Tensor], note: Callable[[str], None]
) -> QModule:
    import pyquant
    from pyquant.cli import trace_run as runs
    from pyquant.recipe import Recipe

    if args.quantized is not None:
        return pyquant.load_quantized(args.quantized, fp)
    if not args.enable_quantization:
        return runs.wrapped(fp)
    recipe = Recipe.preset(args.recipe or "w8a8")
    if recipe.steps:
        steps = ", ".join(map(str, recipe.steps))
        note(f"the formats of {recipe.name} alone: its steps ({steps}) want calibration data; see --quantized")
    return runs.quantize(fp, Recipe.of(recipe.policy), [batch], note, progress=False)


def _check(args: argparse.Namespace) -> None:
    if args.quantized is not None and args.enable_quantization:
        raise UsageError("--quantized FOLDER is quantized already; leave --enable-quantization and --recipe out")
    if args.recipe and not args.enable_quantization:
        raise UsageError(f"--recipe {args.recipe} sets how to quantize; add --enable-quantization")
    if args.sites and not _rounds(args):
        raise UsageError("--sites shows what quantization does; add --enable-quantization or --quantized FOLDER")
    if args.circle and not _rounds(args):
        raise UsageError("--circle exports a quantized model; add --enable-quantization or --quantized FOLDER")
    if args.circle and args.dtype != "float32":
        raise UsageError(f"--circle compares with a file that computes in float32; leave --dtype {args.dtype} out")
    if args.circle not in (None, NO_FILE) and not args.circle.is_file():
        raise UsageError(f"--circle: there is no file {str(args.circle)!r}")
    if args.breakpoint_on_interesting_modules and not args.interesting_modules:
        raise UsageError("--breakpoint-on-interesting-modules needs --interesting-modules GLOB ...")
    if args.json is not None and str(args.json) != "-" and not args.json.absolute().parent.is_dir():
        raise UsageError(f"--json: the folder {str(args.json.absolute().parent)!r} does not exist; create it first")
    if args.save is not None and args.save.exists():
        raise UsageError(f"--save: {str(args.save)!r} exists; name a new folder")


def _folder(args: argparse.Namespace, fp: nn.Module, stack: ExitStack) -> Path | None:
    """Where the tensors go: the requested folder, none (RAM) for a small model, else a temporary one."""
    if args.save is not None:
        return Path(args.save)
    if sum(p.numel() * p.element_size() for p in fp.parameters()) <= IN_MEMORY:
        return None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyquant-trace-")))


def _inputs(name: str, fp: nn.Module, batch: dict[str, Tensor]) -> str:
    from pyquant.trace import describe
    from pyquant.trace.render import tensor_line
    from pyquant.trace.values import tensors_of

    lines = [f"{name}: {type(fp).__name__}", "inputs"]
    lines += [f"  {path}: {tensor_line(value)}" for path, value in tensors_of(describe(batch))]
    return "\n".join(lines) + "\n"


class _Report:
    """The recorded traces, as text and as JSON."""

    def __init__(
        self,
        args: argparse.Namespace,
        left: Trace,
        right: Trace,
        comparison: Comparison,
        found: SiteTrace | None,
        shown: set[str],
        pairs: dict[str, str],
        graphs: dict[str, TensorReport],
    ) -> None:
        self.pairs, self.graphs = pairs, graphs
        self.args, self.left, self.right, self.comparison, self.found = args, left, right, comparison, found
        self.calls = {
            "unquantized": [call for call in left if call.name in shown],
            "quantized": [call for call in right if pairs[call.name] in shown],
        }

    def text(self) -> str:
        from pyquant.cli import trace_circle
        from pyquant.trace import render_comparison, render_sites

        out = []
        if not self.args.no_trace_unquantized:
            out += ["--- unquantized: transformers' modules", self._records(self.left, self.calls["unquantized"])]
        if not self.args.no_trace_quantized:
            how = f"quantized, {self._recipe()}" if _rounds(self.args) else "in float"
            out += [f"--- quantized: the wrappers, {how}", self._records(self.right, self.calls["quantized"])]
        if not self.args.no_side_by_side:
            out += ["--- side by side: a is unquantized, b is quantized", render_comparison(self.comparison)]
        if self.found is not None:
            out += ["--- sites", render_sites(self.found)]
        if self.graphs:
            out += ["--- circle: tensors of the file against eager", trace_circle.render(self.graphs)]
        if _rounds(self.args):
            out += ["--- where to look: modules that lose the most themselves", self._losses()]
            if self.found is not None:
                out += ["sites that round the most", render_sites(self.found, self.found.worst(WORST))]
        return "\n".join(out)

    def _losses(self) -> str:
        from pyquant.trace import losses, render_losses

        return render_losses(losses(self.left, self.right, self.comparison, self.pairs, WORST))

    def _recipe(self) -> str | None:
        if self.args.quantized is not None:
            return str(self.args.quantized)
        return (self.args.recipe or "w8a8") if self.args.enable_quantization else None

    def _records(self, trace: Trace, calls: list[Call]) -> str:
        from pyquant.trace import render_trace

        if not self.args.interesting_modules:
            return render_trace(trace, calls)
        # For the chosen modules the values too, as torch abbreviates them.
        out = []
        for call in calls:
            out.append(render_trace(trace, [call]))
            for path, value in call.tensors():
                if path.startswith("output") and value.key is not None:
                    rows = str(trace.tensor(value)).split("\n")
                    out.append("\n".join([f"  {path} =", *(f"    {row}" for row in rows)]) + "\n")
        return "".join(out)

    def write(self, batch: dict[str, Tensor]) -> None:
        from pyquant.trace import describe
        from pyquant.trace.values import to_data

        data: dict[str, Any] = {
            "format": FORMAT,
            "model": self.args.model,
            "recipe": self._recipe(),
            "inputs": to_data(describe(batch)),
            "unquantized": json.loads(self.left.to_json()),
            "quantized": json.loads(self.right.to_json()),
            "side_by_side": json.loads(self.comparison.to_json()),
        }
        if self.found is not None:
            data["sites"] = json.loads(self.found.to_json())
        if self.graphs:
            data["circle"] = {name: graph.to_dict() for name, graph in self.graphs.items()}
        text = json.dumps(data, allow_nan=False, indent=1) + "\n"
        if str(self.args.json) == "-":
            sys.stdout.write(text)
        else:
            files.whole_text(self.args.json, text)


def _only(comparison: Comparison, shown: set[str]) -> Comparison:
    """The entries of the modules that are shown; without parts of wrappers that have no module of their own."""
    from dataclasses import replace

    entries = tuple(entry for entry in comparison if entry.module in shown)
    return replace(comparison, entries=entries, only_a=tuple(n for n in comparison.only_a if n in shown), only_b=())


def _verdict(args: argparse.Namespace, comparison: Comparison) -> int:
    code = exit_code(comparison, args.fail_above)
    if _rounds(args):
        return code
    limit = ROUNDING[args.dtype]
    if beyond := comparison.above(limit):
        first = beyond[0]
        print(
            f"the wrappers, in float, differ from the model by more than rounding (PEIR {limit:g}) at {len(beyond)} "
            f"values, first at {first.module or '(model)'} {first.path}{f': {first.problem}' if first.problem else ''}",
            file=sys.stderr,
        )
        return FOUND
    return code or FINE
