# SPDX-License-Identifier: Apache-2.0
"""One row of docs/accuracy.md: a recipe on SmolLM2-135M-Instruct, in a process of its own.

    python -m benchmarks.accuracy.measure OUT.json --recipe w4a16 [--files 8] [--calibration FILE] [--text FILE]

Nats per token lost against the float model on the same windows, with the standard error of the paired difference;
minutes from the float model to the converted tree; peak memory beyond the loaded float model; and with --files what the
written bundle loses beside the simulation, in TICO's reference runtime on so many windows. Calibration is on the first
windows of the text that examples/smollm2.py has (Python's language reference) or on FILE, the measure on its last ones;
--text adds a second text to measure on.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyquant
from examples import smollm2
from pyquant.evaluation import Series, paired_difference, token_losses
from pyquant.policy import Role
from pyquant.wrap import QModule

CALIBRATION, HELDOUT, SECOND = 64, 33, 17  # windows of 256 tokens


def losses(logits: Callable[[Tensor], Tensor], texts: Tensor) -> Series:
    """Nats of each window, over its predicted tokens."""
    with torch.no_grad():
        sums = [float(token_losses(logits(row[None])[0, :-1], row[1:]).sum()) for row in texts]
    return Series(tuple(sums), (float(texts.shape[1] - 1),) * len(sums))


def text_of(path: Path, tokenizer: Any, count: int) -> Tensor:
    """The first `count` windows of a text file."""
    ids = tokenizer(path.read_text(encoding="utf-8")[: count * smollm2.WINDOW * 8], return_tensors="pt")["input_ids"][0]
    return ids[: count * smollm2.WINDOW].reshape(-1, smollm2.WINDOW)


def row(fp: nn.Module, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one recipe."""
    texts = smollm2.windows(tokenizer)
    data = texts[:CALIBRATION] if args.calibration is None else text_of(args.calibration, tokenizer, CALIBRATION)
    data = data[: args.samples]
    batches = [{"input_ids": each[None], "use_cache": False} for each in data]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    q = pyquant.quantize(fp, batches, args.recipe, progress=False)
    minutes = (time.perf_counter() - began) / 60
    found: dict[str, Any] = {
        "recipe": args.recipe,
        "calibration": "Python's language reference" if args.calibration is None else args.calibration.stem,
        "tokens": int(data.numel()),
        "minutes": round(minutes, 2),
        "peak_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "weight_bits": round(_bits(q), 2),
    }
    found["notes"] = list(q.state.notes)
    found["share16"] = _share16(q)
    measured = {"reference": texts[-HELDOUT:]}
    if args.text is not None:
        measured["second"] = text_of(args.text, tokenizer, SECOND)
    for name, rows in measured.items():
        base, own = (
            losses(lambda ids: fp(input_ids=ids).logits, rows),
            losses(lambda ids: q(input_ids=ids).logits, rows),
        )
        difference = paired_difference(own, base)
        found[name] = {
            "float": base.mean,
            "nats": difference.value,
            "standard_error": difference.standard_error,
            "tokens": int(sum(own.weights)),
        }
    if args.files:
        out = args.out.with_suffix("")
        smollm2.export(q, out)
        part = texts[-args.files :]
        difference = paired_difference(
            losses(smollm2.Files(out), part), losses(lambda ids: q(input_ids=ids).logits, part)
        )
        found["files"] = {"nats": difference.value, "tokens": int(difference.weight)}
    return found


def _share16(q: QModule) -> float:
    """The part of activation elements at 16 bits: as auto16 says, else all or none."""
    said = [re.search(r"auto16: .* ([0-9.]+)% of the activation elements", note) for note in q.state.notes]
    if found := next((each for each in said if each), None):
        return float(found[1]) / 100
    widths = {site.spec.dtype.bits for site in q.all_sites() if site.spec is not None and not site.role.is_constant}
    return float(widths == {16})


def _bits(q: QModule) -> float:
    """Mean bits of the weights of linears and tables."""
    bits = elements = 0
    for module in q.all_qmodules():
        for name, value in module.constants().items():
            site = module.site(name)
            if site.role in (Role.WEIGHT, Role.EMBEDDING):
                bits += value.numel() * (32 if site.spec is None else site.spec.dtype.bits)
                elements += value.numel()
    return bits / elements


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--files", type=int, default=0, help="windows that are run from the files")
    parser.add_argument("--calibration", type=Path, help="a text to calibrate on instead")
    parser.add_argument("--samples", type=int, default=CALIBRATION, help="windows to calibrate on (%(default)s)")
    parser.add_argument("--text", type=Path, help="a second text to measure on")
    args = parser.parse_args(arguments)
    fp, tokenizer = smollm2.load()
    args.out.write_text(json.dumps(row(fp, tokenizer, args), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
