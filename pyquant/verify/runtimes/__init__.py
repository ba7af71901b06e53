# SPDX-License-Identifier: Apache-2.0
"""Runtimes that execute .circle files, one a file. `native` is pyquant's own; each other one is an optional dependency,
whose error has the install command.

Comparing what they compute is fidelity.py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from pyquant.errors import InputError
from pyquant.verify.runtimes._inputs import Program

if TYPE_CHECKING:
    from pyquant.verify.runtimes.native import Runtime as NativeRuntime
    from pyquant.verify.runtimes.tico import Runtime as TicoRuntime

__all__ = ["NAMES", "RuntimeName", "TraceableName", "module", "traceable"]

#: Runtimes of whole files.
RuntimeName = Literal["native", "tico", "onert"]
#: Those that also show every tensor, and run operators one at a time.
TraceableName = Literal["native", "tico"]
NAMES: tuple[RuntimeName, ...] = ("native", "tico", "onert")


def module(name: str) -> Any:
    """The module of a runtime. Raises InputError for another name."""
    if name not in NAMES:
        raise InputError(f"runtime {name!r} is not known; choose one of {', '.join(NAMES)}")
    return importlib.import_module(f"pyquant.verify.runtimes.{name}")


def traceable(name: TraceableName, program: Program) -> NativeRuntime | TicoRuntime:
    """`program` in a runtime that shows every tensor. Raises InputError for one that does not."""
    if name not in ("native", "tico"):
        raise InputError(f"runtime {name!r} shows no tensors inside a graph; choose native or tico")
    runtime: NativeRuntime | TicoRuntime = module(name).Runtime(program)
    return runtime
