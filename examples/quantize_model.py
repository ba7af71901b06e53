# SPDX-License-Identifier: Apache-2.0
"""A whole Qwen3-VL, from float weights to a bundle of .circle files and a checkpoint of the quantized model.

    python -m examples.quantize_model OUT                      the trained digits model of examples/digits
    python -m examples.quantize_model OUT FOLDER LINES.jsonl   a checkpoint folder, on {"image": file, "prompt": text}

generate_over_bundle.py asks the bundle a question. `pyquant quantize` does the same and more from a shell.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import Qwen3VLForConditionalGeneration

import pyquant
from examples.digits import vlm, vlm_data
from pyquant.models import qwen3_vl


def main(out: str = "out/model", folder: str | None = None, lines: str | None = None) -> None:
    if folder is None or lines is None:
        fp = vlm.load_model()
        data = list(vlm_data.calibration_batches(64))
    else:
        fp = Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
        data = pyquant.calibration.read(lines, folder)  # read one at a time, by the folder's own processor

    q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
    pyquant.calibrate(q, data)
    pyquant.convert(q)

    prompt = max(batch["input_ids"].shape[1] for batch in data)
    grids = {tuple(grid.tolist()) for batch in data for grid in batch.get("image_grid_thw", ())}
    profile = qwen3_vl.Profile(
        max_seq_len=prompt + 16,  # the prompt and up to 16 tokens of answer
        prefill_lengths=(prompt,),
        image_grids=tuple(sorted(grids)),
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    programs = pyquant.export_bundle(q, out, profile)
    for name, program in programs.items():
        size = (Path(out) / f"{name}.circle").stat().st_size
        print(f"{name:24}{size:>12,} bytes {len(program.graph.operators):>6} operators")
    pyquant.save_quantized(q, Path(out) / "quantized")


if __name__ == "__main__":
    main(*sys.argv[1:])
