# SPDX-License-Identifier: Apache-2.0
"""Options of the benchmarks, and the closing table: how many times pyquant's time each rival takes, and the spread.

It owns how results are shown. What is measured is in the bench files, how is rivals.py, what may not get worse is
compare.py.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

ISAS = ("scalar", "portable", "avx2", "avx512")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kib", type=int, default=16 * 1024, help="size of the input in KiB of float32 (default: 16 MiB)")
    parser.addoption("--short", action="store_true", help="only the benchmarks that the gate compares")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "short: also part of the short form")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--short"):
        chosen = [item for item in items if item.get_closest_marker("short")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture
def elements(request: pytest.FixtureRequest) -> int:
    """Elements of an input; a multiple of 4096."""
    return max(1, int(request.config.getoption("--kib")) // 16) * 4096


def cpu() -> str:
    """The CPU's name and the number of CPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} CPUs"


def machine() -> str:
    """CPU, cores, instruction set in use, torch, and how busy the machine is."""
    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    isa = ISAS[int(torch.ops.pyquant._isa(-1))]
    return f"{cpu()}, {isa}, torch {torch.__version__}, load {load}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["pyquant"] = {"cpu": cpu(), "described": machine(), "short": config.getoption("--short")}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    results = [b for b in getattr(session, "benchmarks", []) if "rivals" in b.extra_info]
    if not results:
        return
    write = terminalreporter.write_line
    write(f"\n{machine()}; kernels on {config.getoption('--kib')} KiB of float32")
    write("how many times pyquant's time a rival takes: median of the turns (first to third quarter)")
    for result in results:
        info = result.extra_info
        write(f"{result.group:58} {_time(info['seconds'])}")
        for name, rival in info["rivals"].items():
            spread = f"({rival['low']:.2f} to {rival['high']:.2f})"
            write(f"  {name:56} {_time(rival['seconds'])} {rival['ratio']:8.2f}x {spread}")


def _time(seconds: float) -> str:
    return f"{seconds:8.2f} s " if seconds >= 1 else f"{1e3 * seconds:8.3f} ms"
