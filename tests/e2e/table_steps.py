# SPDX-License-Identifier: Apache-2.0
"""What each step adds to the memory of a process when one large table is quantized, exported, saved and loaded.

    python -m tests.e2e.table_steps FOLDER

A program and not a test: in a process that did other things before, the allocator holds memory of theirs or takes it
again, and neither says anything about these steps. Prints the most that each step adds, in tables, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pyquant
from pyquant import pages
from pyquant.cli import memory
from pyquant.exporter.profile import TensorSpec

ROWS, WIDTH = 32768, 2048
TABLE = ROWS * WIDTH * 2  # 128 MiB: bytes in bfloat16


def table(folder: Path) -> nn.Embedding:
    """A bfloat16 table that is mapped from its file."""
    weight = torch.empty(ROWS, WIDTH, dtype=torch.bfloat16)
    weight.view(torch.int16).random_(15000, 16000)  # 2^-10 to 2^-3: bits of bfloat16
    save_file({"weight": weight}, folder / "table.safetensors")
    del weight
    with safe_open(folder / "table.safetensors", framework="pt") as file:
        mapped = file.get_tensor("weight")
    fp = nn.Embedding(ROWS, WIDTH, dtype=torch.bfloat16, device="meta")
    fp.weight = nn.Parameter(mapped)
    return fp


class Anonymous:
    """The most memory of this process that is no page of a file, looked at while the block runs."""

    def __init__(self) -> None:
        self.peak = 0
        self._end = threading.Event()

    def __enter__(self) -> Anonymous:
        self.before = self._now()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())

    def _look(self) -> None:
        while not self._end.wait(0.002):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        return memory._number(memory._STATUS, "RssAnon")


def steps(folder: Path) -> dict[str, float]:
    """What each step adds at most, in tables; pages of files do not count."""
    fp = table(folder)
    weight, ids = fp.weight, torch.arange(0, ROWS, 100)[None]
    found: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        pages.release([weight])  # and what the allocator keeps
        with Anonymous() as watch:
            yield
        found[name] = (watch.peak - watch.before) / TABLE

    with step("quantize"):
        q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16"))
        pyquant.calibrate(q, [ids], progress=False)
        pyquant.convert(q)
        rows = q(ids)
    with step("export"):
        profile = pyquant.ExportProfile({"ids": TensorSpec((1, 8), torch.int32)}, ("rows",), name="rows")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyquant.LowPrecisionWarning)  # of bfloat16, which is what is measured
            pyquant.export_bundle(q, folder / "out", profile)
    with step("save"):
        pyquant.save_quantized(q, folder / "saved")
    with step("load"):
        back = pyquant.load_quantized(folder / "saved", nn.Embedding(ROWS, WIDTH, dtype=weight.dtype, device="meta"))
    assert torch.equal(back(ids), rows)
    assert torch.equal(fp(ids), nn.functional.embedding(ids, weight)), "the float table is as it was"
    return found


if __name__ == "__main__":
    print(json.dumps(steps(Path(sys.argv[1]))))
