# SPDX-License-Identifier: Apache-2.0
"""Options and the closing table of the kernel benchmarks: median, spread, and the ratio to each rival.

It owns how results are shown. What is measured is in the bench files, how is rivals.py.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

ISAS = ("scalar", "portable", "avx2", "avx512")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kib", type=int, default=16 * 1024, help="size of the input in KiB of float32 (default: 16 MiB)")


@pytest.fixture
def elements(request: pytest.FixtureRequest) -> int:
    """Elements of an input; a multiple of 4096."""
    return max(1, int(request.config.getoption("--kib")) // 16) * 4096


def machine() -> str:
    """CPU, cores, instruction set in use, torch, and how busy the machine is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    isa = ISAS[int(torch.ops.pyquant._isa(-1))]
    return f"{cpu}, {os.cpu_count()} CPUs, {isa}, torch {torch.__version__}, load {load}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    results = [b for b in getattr(session, "benchmarks", []) if b.stats and b.stats.rounds]
    if not results:
        return
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for result in results:
        groups[result.group][result.extra_info["rival"]] = result.stats
    write = terminalreporter.write_line
    write(f"\n{machine()}; {config.getoption('--kib')} KiB of float32; times in ms")
    write(f"{'':50} {'median':>9} {'min':>9} {'stddev':>9}   time of the first / this")
    for group, rivals in groups.items():
        write(group)
        own = next(iter(rivals.values()))
        for name, stats in rivals.items():
            times = " ".join(f"{1e3 * v:9.3f}" for v in (stats.median, stats.min, stats.stddev))
            write(f"  {name:48} {times}   {own.median / stats.median:.2f} (of the minima {own.min / stats.min:.2f})")
