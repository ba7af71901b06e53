# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the operator tests: every instruction set of this CPU, and one thread unless a test sets more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ops_cases import ISAS

import pyquant.ops  # noqa: F401  (registers torch.ops.pyquant)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    number = ISAS.index(request.param)
    before = torch.ops.pyquant._isa(-1)
    if torch.ops.pyquant._isa(number) != number:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    torch.ops.pyquant._isa(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
