# SPDX-License-Identifier: Apache-2.0
"""Finds the verb, runs it, and turns its errors into one line and an exit code.

Exit codes: 0 fine; 1 a threshold was passed or something was found wrong; 2 wrong usage or a file that cannot be used.
Only the module of the given verb is imported, and torch only when that verb runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol, cast

from pyquant import __version__
from pyquant.errors import PyquantError

FINE, FOUND, FAILED = 0, 1, 2

# verb -> what it does, in a line. The verb's module is pyquant/cli/<verb>.py; it is listed when that file exists.
VERBS = {
    "quantize": "quantize a checkpoint and write .circle files",
    "recipes": "list the recipes and where their files run, or explain one",
    "doctor": "say what is installed, what is missing, and how to get it",
    "trace": "record every module of a float and a quantized model, side by side",
    "compare": "compare two saved traces, or two .circle files",
    "inspect": "show the tensors, operators and sizes of a .circle file",
    "verify": "list every fault of a .circle file",
    "evaluate": "measure perplexity, answers and speed of models and files, side by side",
    "smoke": "run every registered wrapper from prepare to a .circle file and check each",
    "sensitivity": "rank the sites by what quantizing each does to the output",
    "report": "write one HTML page about a quantized model",
}


class Verb(Protocol):
    """The functions of a verb's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the verb's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Runs the verb; returns the exit code.

        Raises PyquantError, OSError or ImportError for what a user can correct.
        """


def verbs() -> dict[str, str]:
    """The verbs that exist, and what each does."""
    return {name: text for name, text in VERBS.items() if find_spec(f"pyquant.cli.{name}") is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (None: the process's own); returns its exit code."""
    # A closed pipe (`| head`) ends the program without a message, and Ctrl-C without a traceback.
    try:
        args = _parse(list(sys.argv[1:] if argv is None else argv))
        code = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # Without this, Python reports the closed pipe again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("pyquant: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (PyquantError, OSError, ImportError) as error:
        if os.environ.get("PYQUANT_TRACEBACK"):
            raise
        print(f"pyquant: {type(error).__name__}: {_line(error)}", file=sys.stderr)
        return FAILED
    return code


def entry() -> None:
    """The console script. SIGTERM and SIGHUP end it like Ctrl-C: incomplete files are removed first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores it, and that is kept
            signal.signal(number, _ended)
    sys.exit(main())


def _ended(number: int, _: object) -> None:
    print(f"pyquant: ended by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def _line(error: Exception) -> str:
    """An error's message on one line, with the file's name where the system's message has none."""
    return " ".join(str(error).split()) or "no message"


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pyquant",
        description="Quantizes Hugging Face models after training, shows what that does, and writes .circle files.",
        epilog="Exit codes: 0 fine, 1 a threshold was passed or a fault found, 2 wrong usage or an unusable file. "
        "PYQUANT_TRACEBACK=1 shows where an error came from. Files alone: see pyquant-circle --help.",
    )
    parser.add_argument("--version", action="version", version=f"pyquant {__version__}")
    below = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, text in verbs().items():
        child = below.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            verb = cast("Verb", importlib.import_module(f"pyquant.cli.{name}"))
            child.description = (verb.__doc__ or child.description or "").split("\n\n")[0]
            verb.add_arguments(child)
            child.set_defaults(run=verb.run)
    if not words:
        parser.print_help(sys.stderr)
        raise SystemExit(FAILED)
    return parser.parse_args(words)


if __name__ == "__main__":
    entry()
