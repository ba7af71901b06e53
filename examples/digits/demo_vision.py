# SPDX-License-Identifier: Apache-2.0
"""The whole line on the trained digits classifier: quantize, export, write, run elsewhere, compare. Run by `make demo`.
It owns what is printed; the work is done by pyquant's public functions.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import plotext
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import pyquant
from examples.digits.data import Digits, batches, load_split, patchify
from examples.digits.model import CHECKPOINT, DigitsClassifier, accuracy, predict
from examples.digits.quant import QuantDigitsClassifier
from pyquant import metrics
from pyquant.models import gemma4
from pyquant.verify.runtimes import native

RECIPES = ("w8a8", "w8a16", "w4a16")


@dataclass(frozen=True)
class Result:
    """Logits of the held-out images by each of the three, and what the file weighs."""

    float_logits: Tensor
    eager_logits: Tensor
    circle_logits: Tensor
    circle_bytes: int
    missing_qparams: int


def quantize(fp: DigitsClassifier, recipe: str, calibration: Digits) -> QuantDigitsClassifier:
    """prepare -> calibrate -> convert."""
    q = pyquant.prepare(fp, pyquant.Policy.preset(recipe))
    assert isinstance(q, QuantDigitsClassifier), "the classifier's own wrapper is registered by examples.digits.quant"
    pyquant.calibrate(q, list(batches(calibration, fp.config)), progress=True)
    pyquant.convert(q)
    return q


def run_file(path: Path, pixel_values: Tensor, batch_size: int) -> Tensor:
    """Logits (N, classes) that the file computes, in integers."""
    runtime = native.Runtime(path)
    starts = tqdm(range(0, len(pixel_values), batch_size), desc="circle", unit="batch", disable=None)
    parts = []
    for start in starts:
        part = pixel_values[start : start + batch_size]
        filled = torch.cat([part, part[-1:].expand(batch_size - len(part), -1, -1)])  # the file's batch is fixed
        parts.append(runtime.run({"pixel_values": filled})["logits"][: len(part)])
    return torch.cat(parts)


def demo(recipe: str, out: Path, limit: int | None, calibration: int, batch_size: int, console: Console) -> Result:
    """Steps 1 to 4 for one recipe; prints as it goes. The file is `out`/digits_vision.circle."""
    fp = DigitsClassifier.load()
    heldout = load_split("heldout")[:limit]
    inputs = patchify(heldout.images, fp.config)
    console.rule(f"[bold]{recipe}")
    q = quantize(fp, recipe, load_split("train")[:calibration])

    side = fp.config.image_size // fp.config.patch_size
    began = time.perf_counter()
    program = pyquant.export(q, gemma4.VisionProfile(grid=(side, side), batch_size=batch_size))
    path = out / "digits_vision.circle"
    program.save(path)
    console.print(f"exported and wrote {path} in {time.perf_counter() - began:.1f} s")
    faults = pyquant.circle.check(path)
    for fault in faults:
        console.print(f"[red]{fault.code}[/] {fault.message} ({fault.where})")
    console.print(f"native check: {len(faults)} faults")

    print(pyquant.verify.compare(program, q, {"pixel_values": inputs["pixel_values"][:batch_size]}))
    result = Result(
        float_logits=predict(fp, inputs),
        eager_logits=predict(q, inputs),
        circle_logits=run_file(path, inputs["pixel_values"], batch_size),
        circle_bytes=path.stat().st_size,
        missing_qparams=len(program.missing_qparams()),
    )
    show(result, heldout, recipe, console)
    if faults or result.missing_qparams:
        sys.exit(f"{path}: {len(faults)} faults and {result.missing_qparams} tensors without qparams, expected none")
    return result


def show(result: Result, heldout: Digits, recipe: str, console: Console) -> None:
    """The table side by side, and float against quantized as a scatter plot."""
    float_bytes = (CHECKPOINT / "model.safetensors").stat().st_size
    table = Table(title=f"{recipe}: {len(heldout)} held-out handwritten digits")
    columns = ("", "accuracy", "mean |diff|", "PEIR", "SQNR", "size on disk", "no qparams")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    reference = result.float_logits
    table.add_row("float (HF)", f"{accuracy(reference, heldout.labels):.2%}", "", "", "", f"{float_bytes:,} B", "")
    for name, logits in (("eager, quantized", result.eager_logits), ("Circle (the files)", result.circle_logits)):
        table.add_row(
            name,
            f"{accuracy(logits, heldout.labels):.2%}",
            f"{metrics.mean_abs_diff(reference, logits):.4f}",
            f"{metrics.peir(reference, logits):.3%}",
            f"{metrics.sqnr_db(reference, logits):.1f} dB",
            f"{result.circle_bytes:,} B ({result.circle_bytes / float_bytes:.0%})" if "Circle" in name else "",
            str(result.missing_qparams) if "Circle" in name else "",
        )
    console.print(table)
    same = (result.eager_logits == result.circle_logits).double().mean()
    agree = (result.eager_logits.argmax(-1) == result.circle_logits.argmax(-1)).double().mean()
    console.print(
        f"Circle against eager: {same:.2%} of logits equal, max |diff| "
        f"{metrics.max_abs_diff(result.eager_logits, result.circle_logits):.4f}, same answer on {agree:.2%} of images"
    )
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, 90), 24)
    plotext.scatter(reference.flatten().tolist(), result.circle_logits.flatten().tolist(), marker="hd")
    plotext.title("logits: float (x) against Circle (y)")
    print(plotext.uncolorize(plotext.build()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=(*RECIPES, "all"), default="w8a8")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the file (default: out)")
    parser.add_argument("--limit", type=int, default=None, help="held-out images to run (default: all)")
    parser.add_argument("--calibration", type=int, default=256, help="training images to calibrate on (default: 256)")
    parser.add_argument("--batch-size", type=int, default=8, help="images that one run of the file takes (default: 8)")
    args = parser.parse_args(arguments)
    for name in ("calibration", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    recipes = RECIPES if args.recipe == "all" else (args.recipe,)
    for recipe in recipes:
        out = args.out if len(recipes) == 1 else args.out / recipe
        out.mkdir(exist_ok=True)
        demo(recipe, out, args.limit, args.calibration, args.batch_size, console)


if __name__ == "__main__":
    main()
