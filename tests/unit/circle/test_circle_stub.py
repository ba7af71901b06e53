# SPDX-License-Identifier: Apache-2.0
"""The type stub pyquant/_circle.pyi is what pybind11-stubgen makes of the module that is installed, formatted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyquant

LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"
HOW = "run `python -m tests.unit.circle.test_circle_stub` after changing csrc/bindings"


def generate(folder: Path) -> str:
    path = folder / "pyquant" / "_circle.pyi"
    for command in (
        ["pybind11_stubgen", "pyquant._circle", "-o", str(folder)],
        ["ruff", "check", "--quiet", "--isolated", "--select=I", "--fix", str(path)],
        ["ruff", "format", "--quiet", "--isolated", "--line-length=120", str(path)],
    ):
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return LICENCE + path.read_text()


def stub() -> Path:
    return Path(pyquant.__file__).with_name("_circle.pyi")


def test_the_stub_is_what_the_module_says(tmp_path: Path) -> None:
    assert stub().read_text() == generate(tmp_path), HOW


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        stub().write_text(generate(Path(folder)))
