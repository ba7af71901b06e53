# SPDX-License-Identifier: Apache-2.0
"""Says what is installed, what is missing, and how to get it. Exit code 1 when something that pyquant needs is missing.

It owns the words; what is needed, and what for, is what the installed package declares (pyproject.toml).
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from pyquant import __version__
from pyquant.cli.main import FINE, FOUND

DISTRIBUTION = "pyquant-circle"
#: extra -> what it is for; extras that are not here are for working on pyquant itself
EXTRAS = {
    "images": "calibration lines with images",
    "report": "pyquant report, plots on a terminal",
    "eval": "lm-eval's tasks in pyquant evaluate",
    "tico": "TICO's runtime and verifier beside ours",
    "smollm2": "a real network to try (SmolLM2-135M)",
}


@dataclass(frozen=True)
class Line:
    """What was looked for, what was found, and where it is missing or wrong, the next step."""

    what: str
    found: str
    step: str = ""

    def __str__(self) -> str:
        return f"{'ok' if not self.step else '--':<3} {self.what:<20} {self.found}" + (
            f"\n{'':<25}{self.step}" if self.step else ""
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    needed = [*_system(), *_declared(None), *_native()]
    print("\n".join(map(str, needed)))
    for extra, purpose in EXTRAS.items():
        lines = list(_declared(extra))
        missing = [line.what for line in lines if line.step]
        how = f"pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        found = f"{purpose}: " + ("installed" if not missing else f"optional, {', '.join(missing)} missing")
        print(Line(f"[{extra}]", found, how))
    return FOUND if any(line.step for line in needed) else FINE


def _system() -> Iterator[Line]:
    yield Line("pyquant", f"{__version__} in {os.path.dirname(importlib.import_module('pyquant').__file__ or '')}")
    yield Line("python", f"{platform.python_version()} ({sys.executable})")


def _declared(extra: str | None) -> Iterator[Line]:
    """The requirements of the installed package, of an extra or (None) those without one."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        yield Line(DISTRIBUTION, "not installed", "pip install --no-build-isolation -e . in the source tree")
        return
    for each in requirements:
        with_extra = each.marker is not None and each.marker.evaluate({"extra": extra or ""})
        without = each.marker is None or each.marker.evaluate({"extra": ""})
        if without if extra is None else with_extra and not without:
            yield _installed(each.name, str(each.specifier), each.specifier.contains)


def _installed(name: str, wanted: str, fits: Callable[..., bool]) -> Line:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Line(name, "not installed", f"pip install '{name}{wanted}'")
    if not fits(found, prereleases=True):
        return Line(name, f"{found}, wanted {wanted}", f"pip install '{name}{wanted}'")
    return Line(name, found)


def _native() -> Iterator[Line]:
    try:
        import torch

        from pyquant import ops

        yield Line(
            "native operators", f"{ops.backends.summary(torch.device('cpu'))}, {torch.get_num_threads()} threads"
        )
        if torch.cuda.is_available():
            yield Line("GPU", f"{torch.cuda.get_device_name()}: {ops.backends.summary(torch.device('cuda'))}")
        else:
            yield Line("GPU", "none that torch sees (not needed)")
    except ImportError as error:
        yield Line("native operators", "missing", " ".join(str(error).split()))
    from pyquant import _launch

    try:
        yield Line("pyquant-circle", _launch.program())
    except SystemExit as stop:
        yield Line("pyquant-circle", "missing", str(stop))
