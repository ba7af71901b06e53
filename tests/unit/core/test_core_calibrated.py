# SPDX-License-Identifier: Apache-2.0
"""A calibration that was killed goes on from its folder, with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyquant
from pyquant import calibrated
from pyquant.errors import CheckpointError
from pyquant.models.llama import example
from pyquant.policy import ObserverSpec, Policy, Rule
from pyquant.wrap import QModule

ROOT = Path(__file__).parents[3]


class Batches:
    """Five batches; the process is killed before number `last` is given a second time (the first is for checksums)."""

    def __init__(self, last: int = 99) -> None:
        generator = torch.Generator().manual_seed(3)
        self._ids = [torch.randint(0, 256, (1, 6 + n), generator=generator) for n in range(5)]
        self._last, self._walks = last, 0

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._walks += 1
        for number, ids in enumerate(self._ids):
            if self._walks == 2 and number == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"input_ids": ids}


def tree(kind: str) -> QModule:
    policy = Policy.preset("w8a8")
    spec = pyquant.QuantSpec.from_dict({"dtype": "uint8", "symmetric": False, "granularity": "per_tensor"})
    rule = Rule("*", role="activation", spec=spec, observer=ObserverSpec(kind, {}))
    return pyquant.prepare(example.tiny_model(), Policy((*policy.rules, rule)))


def statistics(q: QModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in calibrated._tensors(q).items()}


def ran(kind: str, folder: Path | None, last: int = 99) -> dict[str, Tensor]:
    q = tree(kind)
    pyquant.calibrate(q, Batches(last), resume=folder, progress=False)
    found = statistics(q)
    pyquant.convert(q)
    return found | {f"{s.path} scale": s.scale for s in q.all_sites() if s.scale is not None}


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("ema", (3,)),
        pytest.param("minmax", (2, 4), marks=pytest.mark.slow),
        pytest.param("percentile", (1, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_a_killed_calibration_goes_on_with_the_same_bits(kind: str, kills: tuple[int, ...], tmp_path: Path) -> None:
    wanted = ran(kind, None)
    # As many threads as here, where conftest.py sets them: a product of float32 differs with them in its last bit.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for last in kills:
        program = [sys.executable, "-m", "tests.unit.core.test_core_calibrated", kind, str(tmp_path / "run"), str(last)]
        done = subprocess.run(
            program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    q: Any = tree(kind)
    assert calibrated.Progress(q, Batches(), tmp_path / "run").done == kills[-1]
    got = ran(kind, tmp_path / "run")
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def test_a_folder_of_another_run_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    ran("minmax", tmp_path)
    with pytest.raises(CheckpointError, match="of a run with another data"):
        pyquant.calibrate(tree("minmax"), list(Batches())[:3], resume=tmp_path, progress=False)
    q = tree("minmax")
    pyquant.calibrate(q, Batches(), progress=False)
    with pytest.raises(CheckpointError, match="of a run with another settings"):
        pyquant.calibrate(q, Batches(), resume=tmp_path, progress=False)
    file = tmp_path / calibrated.FILE
    file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    with pytest.raises(CheckpointError, match="remove this file to calibrate from the first batch"):
        pyquant.calibrate(tree("minmax"), Batches(), resume=tmp_path, progress=False)


if __name__ == "__main__":
    calibrated.EVERY = 0.0  # a file after each batch
    ran(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
