# SPDX-License-Identifier: Apache-2.0
"""Starts the native program `pyquant-circle` that the wheel carries in pyquant/bin/.

It only finds the file and executes it; the program itself is csrc/cli and needs neither Python nor torch.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files


def program() -> str:
    """The path of the native program; in an editable install it is in site-packages, beside the native modules."""
    path = str(files("pyquant").joinpath("bin/pyquant-circle"))
    if not os.path.isfile(path):
        sys.exit(f"pyquant-circle: {path} is missing; build it with `make setup` (or `pip install -e .` again)")
    return path


def main() -> None:
    """Replaces this process with the native program, arguments and all."""
    os.execv(program(), ["pyquant-circle", *sys.argv[1:]])
