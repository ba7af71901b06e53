# SPDX-License-Identifier: Apache-2.0
"""The kernel benchmarks run, on a tiny size and once each, so that they keep working; no time is checked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks" / "kernels"


def test_benchmarks_run() -> None:
    command = [sys.executable, "-m", "pytest", str(FOLDER), "--kib", "64", "--benchmark-disable"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout or "." in done.stdout
