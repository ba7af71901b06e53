# SPDX-License-Identifier: Apache-2.0
"""How the tests run the command: in this process, with what it printed; or as the installed program."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from cli_runs import PROGRAM, Done

from pyquant.cli.main import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """pyquant WORDS in this process."""

    def run(*words: object) -> Done:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own errors and --help
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def program() -> Callable[..., Done]:
    """The same in a process of its own."""

    def program(*words: object) -> Done:
        command = [str(PROGRAM), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return program
