# SPDX-License-Identifier: Apache-2.0
"""The model tests under several releases of transformers, each in an environment of its own: `python tests/matrix.py`.

It owns making the environments and the table of results. What is tested is tests/models and the contract with
transformers; `make test` tests the installed release alone, which is called "newest" here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ("5.5.4", "5.9.*", "5.14.*", "5.18.*", "5.23.*", "5.24.*")
TESTS = ("tests/models", "tests/unit/calibration", "tests/unit/wrap")


@dataclass(frozen=True)
class Result:
    """What one release gave: the version found, pytest's last line, its exit code."""

    release: str
    version: str
    summary: str
    seconds: float
    code: int

    def __str__(self) -> str:
        status = "pass" if self.code == 0 else "FAIL"
        return f"{self.release:<8} transformers {self.version:<8} {status}  {self.summary}  ({self.seconds:.0f} s)"


def environment(release: str, folder: Path) -> dict[str, str]:
    """The variables under which `import transformers` finds `release`: an overlay over the packages of this Python."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if release == "newest":
        return env
    overlay = folder / release.replace(".*", "")
    if not (overlay / ".ready").exists():
        numpy = f"numpy=={importlib.metadata.version('numpy')}"  # one numpy: torch and scikit-learn were built for it
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(overlay)]
        subprocess.run([*install, f"transformers=={release}", numpy], check=True)
        (overlay / ".ready").touch()
    return {**env, "PYTHONPATH": os.pathsep.join([str(overlay), str(ROOT)])}


def run(release: str, folder: Path, arguments: list[str]) -> Result:
    """Run the tests under one release, their output straight to the terminal's log file beside the environment."""
    env = environment(release, folder)
    python = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    version = subprocess.run(python, env=env, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    log = folder / f"{release.replace('.*', '')}.log"
    start = time.monotonic()
    with log.open("w") as file:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-disable", *arguments]
        code = subprocess.run(command, env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text().strip().splitlines()
    return Result(release, version, lines[-1].strip("= ") if lines else "no output", time.monotonic() - start, code)


def main() -> int:
    """Print one line a release; the exit code is 1 when one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", default=RELEASES, metavar="X.Y.*", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="where environments are kept")
    parser.add_argument("pytest", nargs="*", help=f"arguments for pytest (after --), default {' '.join(TESTS)}")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for release in options.releases:
        results.append(run(release, options.folder, options.pytest or list(TESTS)))
        print(results[-1], flush=True)
    return int(any(result.code for result in results))


if __name__ == "__main__":
    sys.exit(main())
