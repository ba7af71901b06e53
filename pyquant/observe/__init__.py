# SPDX-License-Identifier: Apache-2.0
"""Observers: statistics that become a range. `make` builds one by kind.

It owns how a range is found. Counting is done by native operators, and using the range is site.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyquant.errors import SpecError
from pyquant.observe.base import Observer
from pyquant.observe.ema import EmaObserver
from pyquant.observe.fixed import FixedObserver
from pyquant.observe.histogram import MseObserver, PercentileObserver
from pyquant.observe.minmax import MinMaxObserver, MseConstantObserver
from pyquant.spec import QuantSpec

__all__ = [
    "EmaObserver",
    "FixedObserver",
    "MinMaxObserver",
    "MseConstantObserver",
    "MseObserver",
    "Observer",
    "PercentileObserver",
    "kinds",
    "make",
]

_KINDS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "ema": EmaObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
    "fixed": FixedObserver,
}


def kinds() -> tuple[str, ...]:
    """Every observer kind."""
    return tuple(_KINDS)


def make(kind: str, params: Mapping[str, Any], spec: QuantSpec, *, constant: bool = False) -> Observer:
    """The observer of one site.

    A `constant` is observed once and completely, so `ema` is the plain range there, and `mse` searches the values
    (per channel and per group too) instead of a histogram. Raises SpecError for a combination that does not exist.
    """
    if kind not in _KINDS:
        raise SpecError(f"observer {kind!r} does not exist; choose one of {', '.join(_KINDS)}")
    if constant and kind == "ema":
        return MinMaxObserver(spec)
    if constant and kind == "mse":
        return MseConstantObserver(spec)
    return _KINDS[kind](spec, **params)
