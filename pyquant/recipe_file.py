# SPDX-License-Identifier: Apache-2.0
"""A recipe file as data: reading, writing, checking it against recipes/schema.json, and the line of a fault.

It owns the words of what the schema refuses. What the data means is recipe.py.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pyquant import files, recipes
from pyquant.errors import PolicyError

__all__ = ["Fault", "faults", "line", "read", "write"]

Key = str | int


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where: `("steps", 1, "gptq", "damping")`."""

    path: tuple[Key, ...]
    text: str

    def __str__(self) -> str:
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).lstrip(".")
        return f"{where}: {self.text}" if where else self.text


def read(path: Path, kind: str = "recipe") -> tuple[Any, str]:
    """The data of a YAML (.yaml, .yml) or JSON file, and its text. Raises PolicyError that names the file."""
    text = files.text(path, f"{kind} file", PolicyError)
    try:
        return (yaml.safe_load(text) if is_yaml(path) else json.loads(text)), text
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise PolicyError(f"{kind} file {str(path)!r} is not valid {path.suffix[1:] or 'JSON'}: {error}") from error


def write(path: Path, data: Any) -> None:
    """Write JSON, or YAML when the name ends in .yaml or .yml; the file is whole or as it was. Raises OSError."""
    if is_yaml(path):
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(data, indent=2) + "\n"
    files.whole_text(path, text)


def is_yaml(path: Path) -> bool:
    """Whether the name says YAML; any other file is JSON."""
    return path.suffix in (".yaml", ".yml")


def faults(data: Any, *, partial: bool = False) -> list[Fault]:
    """Where `data` is not what the schema says, in the order of the file. partial: keys of the file may be missing."""
    from jsonschema import Draft202012Validator

    schema = recipes.schema()
    if partial:
        schema = {key: value for key, value in schema.items() if key != "required"}
    found = sorted(Draft202012Validator(schema).iter_errors(data), key=lambda e: [str(key) for key in e.absolute_path])
    return [*(Fault(tuple(error.absolute_path), _text(error)) for error in found), *_not_numbers(data, ())]


def _not_numbers(value: Any, path: tuple[Key, ...]) -> Iterator[Fault]:
    """NaN, which is within every bound."""
    if isinstance(value, float) and math.isnan(value):
        yield Fault(path, "expected a number, got nan")
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_numbers(item, (*path, key))


def _text(error: Any) -> str:
    """What was seen and what was expected, of a jsonschema.ValidationError."""
    value, rule = error.validator_value, error.validator
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [str(key) for key in error.instance if key not in known]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"{unknown[0]!r} is not known here{hint}; there are {', '.join(known) or 'no parameters'}"
    if rule == "const":
        return f"expected {value!r}, got {error.instance!r}; a newer file needs a newer pyquant"
    if rule in ("minProperties", "maxProperties"):
        return (
            f"a step is one mapping with one key, {{NAME: {{PARAMETER: VALUE}}}}, got the keys {list(error.instance)}"
        )
    if rule == "type":
        kinds = [value] if isinstance(value, str) else [kind for kind in value if kind != "null"]
        hint = " (YAML reads 1e-2 as text: write 0.01 or 1.0e-2)" if _is_exponent(error.instance) else ""
        return f"expected {' or '.join(_KINDS[kind] for kind in kinds)}, got {error.instance!r}{hint}"
    if rule == "enum":
        return f"expected one of {', '.join(map(repr, value))}, got {error.instance!r}"
    if rule == "anyOf":
        return f"{error.schema.get('description', 'expected another value')} got {error.instance!r}"
    if rule in _BOUNDS:
        return f"expected a value {_BOUNDS[rule]} {value}, got {error.instance!r}"
    return str(error.message)


def _is_exponent(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9]+[eE][-+]?[0-9]+", value) is not None


_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
_BOUNDS = {
    "minimum": "of at least",
    "maximum": "of at most",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
}


def line(text: str, path: tuple[Key, ...]) -> int:
    """The line of a YAML or JSON text where the value at `path` begins, or the last of its parents that is there."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # JSON with tabs
        return 1
    found = 1
    for key in path:
        if isinstance(node, yaml.MappingNode):
            entry = next((pair for pair in node.value if pair[0].value == str(key)), None)
            if entry is None:
                break
            found, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            found = node.start_mark.line + 1
        else:
            break
    return found
