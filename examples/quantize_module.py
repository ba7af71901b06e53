# SPDX-License-Identifier: Apache-2.0
"""One module of a Hugging Face model, from float to a .circle file that is run and compared: the shortest whole line.

    python -m examples.quantize_module [mlp.circle]

It takes the first MLP of the trained digits Qwen3-VL. Whole models are quantize_model.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import pyquant
from examples.digits import vlm
from pyquant.exporter import TensorSpec


def main(file: str = "mlp.circle") -> None:
    mlp = vlm.load_model().model.language_model.layers[0].mlp  # any module with a wrapper; it stays as it is
    width = mlp.gate_proj.in_features
    torch.manual_seed(0)
    batches = [torch.randn(1, 16, width) for _ in range(32)]  # what it will see: here, normal numbers

    policy = pyquant.Policy.preset("w8a16")
    q = pyquant.prepare(mlp, policy)
    print(policy.explain(q))  # site -> rule -> format
    pyquant.calibrate(q, batches)
    pyquant.convert(q)

    profile = pyquant.ExportProfile({"x": TensorSpec((1, 16, width))}, outputs=("y",))
    program = pyquant.export(q, profile, name="mlp")
    print(f"{program}: {program.save(Path(file))} bytes, {len(program.missing_qparams())} tensors without qparams")
    print(pyquant.verify.compare(program, q, {"x": batches[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
