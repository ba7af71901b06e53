# SPDX-License-Identifier: Apache-2.0
"""Circle files in Python: read, check, inspect, compare, write, run.

Parsing and checking are native (`pyquant._circle`); only `write` needs torch, and imports it when called. The contents
of a plan are pyquant.exporter.
"""

from __future__ import annotations

from pyquant.circle.files import check, check_plan, diff, inspect, join, read, write
from pyquant.circle.operators import Operand, OperatorInfo, Option, operators
from pyquant.circle.runner import OperatorTime, Port, Runner, Workspace
from pyquant.circle.types import Constant, Fault, Graph, Model, Operator, Tensor, codes, listed

__all__ = [
    "Constant",
    "Fault",
    "Graph",
    "Model",
    "Operand",
    "Operator",
    "OperatorInfo",
    "OperatorTime",
    "Option",
    "Port",
    "Runner",
    "Tensor",
    "Workspace",
    "check",
    "check_plan",
    "codes",
    "diff",
    "inspect",
    "join",
    "listed",
    "operators",
    "read",
    "write",
]
