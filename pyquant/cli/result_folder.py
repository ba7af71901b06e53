# SPDX-License-Identifier: Apache-2.0
"""The folder that `pyquant quantize` writes, and the table that it prints.

    OUT/manifest.json, OUT/*.circle   the bundle (pyquant.export_bundle), with the files that its manifest lists
    OUT/quantized/                    the quantized model (pyquant.load_quantized)
    OUT/recipe.yaml                   the recipe, its policy rule by rule, and every setting in effect
    OUT/quantization_log.csv          who decided which weight, and what was lost, where a step of the recipe did
    OUT/calibration.json              checksums of the calibration samples, also in OUT/quantized (pyquant evaluate)

It owns this layout. The contents of the bundle are pyquant.exporter's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyquant import __version__, files
from pyquant.decision import LOG_FILE, to_csv
from pyquant.errors import CircleError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from pyquant.calibration import Fingerprint
    from pyquant.cli.memory import Timer
    from pyquant.wrap import QModule

QUANTIZED, RECIPE, MANIFEST, CALIBRATION = "quantized", "recipe.yaml", "manifest.json", "calibration.json"


def require_place(out: Path) -> None:
    """Raise CircleError unless `out` is new, empty, or a former result and nothing else: it is replaced completely."""
    if not out.absolute().parent.is_dir():
        raise CircleError(f"cannot write to {str(out)!r}: the folder {str(out.parent)!r} does not exist; create it")
    if not os.access(out.absolute().parent, os.W_OK):
        raise CircleError(f"cannot write to {str(out)!r}: the folder {str(out.parent)!r} cannot be written to")
    if not out.exists():
        return
    if not out.is_dir():
        raise CircleError(f"cannot write to {str(out)!r}: it is a file, and the result is a folder; name another")
    there = sorted(entry.name for entry in out.iterdir())
    known = {QUANTIZED, RECIPE, MANIFEST, CALIBRATION, LOG_FILE, *_files_of(out / MANIFEST)}
    strange = [name for name in there if name not in known and not name.endswith(".circle")]
    if there and (strange or not _is_bundle(out / MANIFEST)):
        raise CircleError(
            f"{str(out)!r} exists and is no result of this command (it has {', '.join((strange or there)[:3])}), so "
            f"it is left alone; name another folder, or empty it"
        )


def _files_of(manifest: Path) -> list[str]:
    """Files beside the graphs, as a manifest lists them."""
    try:
        return [str(name) for name in json.loads(manifest.read_text(encoding="utf-8")).get("files", {})]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _is_bundle(manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text(encoding="utf-8"))["format"] == "pyquant-bundle")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_rest(
    folder: Path,
    q: QModule,
    source: str,
    settings: Mapping[str, Any],
    facts: Mapping[str, str],
    calibrated: Fingerprint,
) -> None:
    """Write quantized/, recipe.yaml, calibration.json and the quantization log into the folder of the bundle.

    source: the checkpoint, whose tokenizer and processor files are copied. facts: rows for the model card. calibrated:
    checksums of the calibration samples.
    """
    import torch
    import transformers

    import pyquant
    from pyquant.recipe import Recipe

    pyquant.save_quantized(q, folder / QUANTIZED, source=source, facts=facts)
    calibrated.save(folder)
    calibrated.save(folder / QUANTIZED)
    versions = {"pyquant": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    recipe = q.state.recipe or Recipe.of(q.policy)
    data = {
        **recipe.to_dict(),
        **settings,
        **({"notes": list(q.state.notes)} if q.state.notes else {}),
        "versions": {name: str(version) for name, version in versions.items()},
    }
    files.whole_text(folder / RECIPE, yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True))
    if q.state.log:
        files.whole_text(folder / LOG_FILE, to_csv(q.state.log))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def show(
    console: Console,
    out: Path,
    fp: nn.Module,
    programs: Mapping[str, Any],
    calibrated: tuple[int, int],
    graphs: Timer,
    timer: Timer,
) -> None:
    """Print one row per graph, the total and the float model's size, what it was calibrated on (samples, rows), and
    time and peak memory: of each graph, each step, and of all.
    """
    from rich.table import Table

    table = Table(title=str(out))
    for column in ("graph", "size", "operators", "no qparams", "time", "peak"):
        table.add_column(column, justify="left" if column == "graph" else "right", no_wrap=True)
    entries = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["graphs"]
    together = any("signature" in entry for entry in entries.values())
    total = sum({entry["file"]: entry["bytes"] for entry in entries.values()}.values())
    for name, program in programs.items():
        size = program.size if together else entries[name]["bytes"]
        spent, counts = graphs.steps[name], (len(program.graph.operators), len(program.missing_qparams()))
        table.add_row(name, _bytes(size), *map(str, counts), f"{spent.seconds:.1f} s", _peak(spent.peak))
    for file in (name for name in graphs.steps if name not in programs):  # a table beside the graphs
        size, spent = (out / file).stat().st_size, graphs.steps[file]
        total += size
        table.add_row(file, _bytes(size), "-", "-", f"{spent.seconds:.1f} s", _peak(spent.peak))
    console.print(table)
    whole = sum(parameter.numel() for parameter in fp.parameters()) * 4
    many_graphs = f"{len(programs)} graph{'' if len(programs) == 1 else 's'}"
    console.print(f"{many_graphs}, {_bytes(total)}; the float32 weights are {_bytes(whole)}")
    if len(programs) > 1:
        console.print(
            "(one file: the sizes above count shared weights in each graph, the total once)"
            if together
            else "(graphs that share weights hold a copy each; --one-file stores them once)"
        )
    console.print(_fit(programs))
    samples, rows = calibrated
    many = f" ({rows} rows)" if rows != samples else ""
    console.print(f"calibrated on {samples} sample{'' if samples == 1 else 's'}{many}")
    steps = timer.steps.items()
    console.print("time: " + ", ".join(f"{name} {spent.seconds:.1f} s" for name, spent in steps))
    if timer.peak:
        console.print("peak memory: " + ", ".join(f"{name} {_peak(spent.peak)}" for name, spent in steps))


def _fit(programs: Mapping[str, Any]) -> str:
    """Which targets' rules the graphs keep, and how many faults they have for the others."""
    faults = {target: sum(len(program.check(target)) for program in programs.values()) for target in ("luci", "onert")}
    rest = "; ".join(f"{target}: {count} faults" if count else f"fit for {target}" for target, count in faults.items())
    return f"runs in pyquant's runner; {rest} (`pyquant recipes` says which recipe runs where)"


def _peak(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count else "-"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
