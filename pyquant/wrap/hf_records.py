# SPDX-License-Identifier: Apache-2.0
"""The records of transformers: for each class that a wrapper copies, what was true of it in each release.

It owns where the files are and what is in them. `tests/contracts.py` writes them, hf_contract.py compares.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

FILE = "contract.json"
ROOT = Path(__file__).parents[1]
SHARED = ROOT / "wrap" / FILE  # activation functions and the KV cache

# first release -> value from there on; None where it does not exist
History = Mapping[str, str | None]
# class -> aspect (see hf_facts.Facts) -> History
Records = Mapping[str, Mapping[str, History]]


def home(cls: type) -> Path:
    """The file with the records of `cls`: in the folder of its family, or of the shared wrappers."""
    parts = cls.__module__.split(".")
    return ROOT / "models" / parts[2] / FILE if parts[:2] == ["transformers", "models"] else SHARED


@functools.cache
def records(path: Path) -> Records:
    if not path.exists():
        return {}
    found: Records = json.loads(path.read_text())["classes"]
    return found


def supported() -> str:
    """`5.5.4 to 5.24.0`: the oldest and the newest release that is recorded for every family."""
    lists = [json.loads(path.read_text())["releases"] for path in sorted(ROOT.glob(f"*/**/{FILE}"))]
    both = [release for release in lists[0] if all(release in other for other in lists)]
    return f"{both[0]} to {both[-1]}"
