# SPDX-License-Identifier: Apache-2.0
"""Recipes that come with pyquant, one YAML file each, their reader, and the JSON schema of such a file.

It owns the files and their names. What a policy means is policy.py, what a recipe is recipe.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

FORMAT, VERSION = "pyquant-recipe", 1


@cache
def names() -> tuple[str, ...]:
    """The presets, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def read(name: str) -> dict[str, Any]:
    """The data of one preset."""
    data: dict[str, Any] = yaml.safe_load(text(name))
    return data


def text(name: str) -> str:
    """The file of one preset."""
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file."""
    data: dict[str, Any] = json.loads((files(__name__) / "schema.json").read_text(encoding="utf-8"))
    return data


def policy_part(data: Any) -> Any:
    """The policy in the data of a recipe file, as a policy file has it; any other data as it is."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
        return data
    if "policy" in data:  # a recipe.yaml of `pyquant quantize` before recipes had steps
        return data["policy"]
    kept = {key: data[key] for key in ("name", "description", "extends", "rules") if key in data}
    return {"format": "pyquant-policy", "version": 1, **kept}
