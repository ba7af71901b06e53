# SPDX-License-Identifier: Apache-2.0
"""The command itself: help at once and without torch, one line per error, exit codes, pipes, Ctrl-C; and `verify`."""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from cli_runs import PROGRAM, Done

from pyquant import __version__
from pyquant.cli import main as command
from pyquant.cli.thresholds import Threshold, threshold
from tests.golden import make

GOLDEN = make.Path(make.__file__).parent
Run = Callable[..., Done]


def test_help_lists_the_verbs_that_are_there(program: Run) -> None:
    done = program("--help")
    assert done.code == 0
    for name in ("trace", "compare", "inspect", "verify"):
        assert name in command.verbs()
    for name, summary in command.verbs().items():
        assert name in done.out
        assert " ".join(summary.split()) in " ".join(done.out.split())
    assert program("--version").out == f"pyquant {__version__}\n"


def test_help_loads_the_standard_library_only() -> None:
    """What makes `pyquant --help` quick: no package but pyquant itself, however loaded the machine is."""
    code = (
        "import sys\nbefore = {name.split('.')[0] for name in sys.modules}\nfrom pyquant.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "loaded = {name.split('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)\n"
        "assert loaded == {'pyquant'}, sorted(loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(command.verbs()))
def test_no_help_loads_torch(verb: str) -> None:
    code = (
        "import sys\nfrom pyquant.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: pyquant {verb}" in done.stdout


@pytest.mark.parametrize("verb", sorted(command.verbs()))
def test_each_verb_is_a_module_with_both_functions(verb: str) -> None:
    module = importlib.import_module(f"pyquant.cli.{verb}")
    assert callable(module.add_arguments)
    assert callable(module.run)
    assert module.__doc__.strip()


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run().code == 2
    for name in command.verbs():
        assert f"\n    {name}" in run().err, "a bare `pyquant` shows its verbs"
    assert run("no_such_verb").code == 2
    assert "invalid choice: 'no_such_verb'" in run("no_such_verb").err
    assert run("inspect").code == 2


def test_an_error_is_one_line(program: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = program("verify", "no/such/file.circle")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "no/such/file.circle" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("PYQUANT_TRACEBACK", "1")
    assert "Traceback" in program("verify", "no/such/file.circle").err


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    file = GOLDEN / "uint8_linear.circle"
    done = subprocess.run(
        ["bash", "-c", f"'{PROGRAM}' inspect '{file}' | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert int(done.stdout) in (0, 141)


def test_ctrl_c_is_a_word_and_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyquant.cli import verify

    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", interrupted)
    done = run("verify", "x.circle")
    assert (done.code, done.err) == (130, "pyquant: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_process_that_is_ended_takes_its_half_written_folder_away(
    tmp_path: make.Path, number: signal.Signals
) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from pyquant import files\n"
        "from pyquant.cli import main, verify\n"
        "def run(args):\n"
        f"    with files.whole_folder(pathlib.Path({str(tmp_path / 'out')!r})) as new:\n"
        "        (new / 'half').write_bytes(b'x')\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    return 0\n"
        "verify.run = run\n"
        "sys.argv[1:] = ['verify', 'x.circle']\n"
        "main.entry()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, f"pyquant: ended by {number.name}\n")
    assert list(tmp_path.iterdir()) == []


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_a_good_file(program: Run) -> None:
    file = GOLDEN / "uint8_linear.circle"
    done = program("verify", file)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"{file}: 0 faults for target circle"
    assert "TICO's verifier: 0 faults" in done.out


def test_verify_finds_what_a_target_refuses(run: Run) -> None:
    done = run("verify", GOLDEN / "int16_uint4_norm.circle", "--target", "onert", "--no-tico")
    assert done.code == 1
    count, *faults, advice = done.out.splitlines()
    assert advice == "recipes without faults there: w8_onert, q8_onert, w4_onert, float (`pyquant recipes`)"
    assert count.endswith(": 4 faults for target onert")
    assert all(line.startswith("  E_") for line in faults)
    assert len(faults) == 3
    assert sum("(and 1 more like it: " in line for line in faults) == 1


def test_verify_of_something_else(run: Run, tmp_path: make.Path) -> None:
    path = tmp_path / "x.circle"
    path.write_bytes(b"not a flatbuffer")
    done = run("verify", path)
    assert done.code == 2
    assert done.err.startswith("pyquant: CircleError: E_")


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_thresholds_know_which_side_is_worse() -> None:
    assert threshold("peir=0.05") == Threshold("PEIR", 0.05)
    assert threshold("PEIR=0.05").passed(0.051)
    assert not threshold("PEIR=0.05").passed(0.05)
    assert threshold("SQNR=20").passed(19.9)
    assert not threshold("SQNR=20").passed(float("inf"))
    assert threshold("PEIR=1").passed(float("nan"))
    assert not threshold("PEIR=1").passed(None)
    assert str(threshold("SQNR=20")) == "SQNR < 20"


@pytest.mark.parametrize("text", ["PEIR", "PEIR=", "PEIR=high", "=1", "LOSS=1", "PEIR=nan", "PEIR:0.1"])
def test_thresholds_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no (threshold|number)"):
        threshold(text)
