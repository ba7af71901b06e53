# SPDX-License-Identifier: Apache-2.0
"""Recipes: the named policies that come with pyquant, one YAML file each, and their reader.

It owns the files and their names. What a policy means is policy.py.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def names() -> tuple[str, ...]:
    """The presets, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def read(name: str) -> dict[str, Any]:
    """The data of one preset."""
    data: dict[str, Any] = yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return data
