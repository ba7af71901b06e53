# SPDX-License-Identifier: Apache-2.0
"""What a run of the command gives back, and where the installed program is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("pyquant")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str
