# SPDX-License-Identifier: Apache-2.0
"""Recipe: a policy, and the steps that decide weights and formats well: what `pyquant.quantize` does, as data.

It owns the order of the steps and the file form, checked against recipes/schema.json. Running a recipe is oneshot.py,
what a step does algorithms/.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyquant import recipe_file, recipes
from pyquant.errors import PolicyError, SpecError
from pyquant.policy import Policy, Rule
from pyquant.recipe_file import Fault

__all__ = ["STAGES", "Recipe", "Step"]

# The order of a run. A step may follow one of its own stage or of an earlier one.
STAGES: Mapping[str, str] = MappingProxyType(
    {
        "rotate": "fold",
        "smooth": "fold",
        "range_search": "decide",
        "gptq": "decide",
        "tune": "decide",
        "calibrate": "calibrate",
        "auto16": "adapt",
    }
)
_ORDER = ("fold", "decide", "calibrate", "adapt")
_MEANING = {
    "fold": "changes float weights without changing the model's output",
    "decide": "decides weights",
    "calibrate": "finds the ranges of activations, with the weights that were decided",
    "adapt": "changes formats by what calibration saw",
}


@dataclass(frozen=True)
class Step:
    """One algorithm of a recipe by its name, such as "gptq", and its parameters; what is not named has its default.

    Raises SpecError for a step that does not exist, and for a parameter that it does not have or cannot take.
    """

    algorithm: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        if faults := recipe_file.faults({"steps": [self.to_dict()]}, partial=True):
            raise SpecError(str(faults[0]))

    def __hash__(self) -> int:
        return hash((self.algorithm, json.dumps(dict(self.parameters), sort_keys=True)))

    def __reduce__(self) -> tuple[type[Step], tuple[str, dict[str, Any]]]:
        return Step, (self.algorithm, dict(self.parameters))

    @property
    def stage(self) -> str:
        """`fold`, `decide`, `calibrate` or `adapt`."""
        return STAGES[self.algorithm]

    def __str__(self) -> str:
        listed = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.algorithm}({listed})" if listed else self.algorithm

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """`{algorithm: {parameter: value}}`, as a recipe file has it."""
        return {self.algorithm: dict(self.parameters)}


@dataclass(frozen=True)
class Recipe:
    """What `pyquant.quantize` does: the formats (policy), and the steps in their order.

    Steps that fold come first, then those that decide weights, then calibrate (which runs on all batches where it is
    not listed), then those that change formats by what was seen. description: a line for people. evidence: where the
    choices come from. Raises SpecError for another order, or a second calibrate.
    """

    name: str
    policy: Policy
    steps: tuple[Step, ...] = ()
    description: str = ""
    evidence: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.policy, Policy) or not all(isinstance(step, Step) for step in self.steps):
            raise SpecError(f"recipe {self.name!r} takes a Policy and Steps, got {self.policy!r:.100}, {self.steps!r}")
        if fault := _misplaced(self.steps):
            raise SpecError(f"recipe {self.name!r}: {fault}")

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A recipe that comes with pyquant. Raises PolicyError that lists the names."""
        if name not in recipes.names():
            raise PolicyError(f"recipe {name!r} does not exist; choose one of {', '.join(recipes.names())}, or a file")
        return cls.from_dict(recipes.read(name))

    @classmethod
    def of(cls, recipe: Recipe | Policy | str | Path) -> Recipe:
        """A recipe by what people have of it: itself, a policy (no steps), the name of a preset, or a file.

        Raises PolicyError for a name that neither a preset nor a file has.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, Policy):
            return cls(recipe.name, recipe)
        if not isinstance(recipe, str | Path):
            raise PolicyError(f"a recipe is a Recipe, a Policy, a name or a file, got {recipe!r:.100}")
        if isinstance(recipe, str) and recipe in recipes.names():
            return cls.preset(recipe)
        if isinstance(recipe, Path) or Path(recipe).suffix in (".yaml", ".yml", ".json") or Path(recipe).exists():
            return cls.load(recipe)
        return cls.preset(recipe)  # its error lists the names

    def with_rules(self, policy: Policy) -> Recipe:
        """This recipe with the rules of `policy` after its own."""
        name = f"{self.name}+{policy.name}"
        return replace(self, name=name, policy=Policy((*self.policy.rules, *policy.rules), name))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        texts = {"description": self.description, "evidence": self.evidence}
        return {
            "format": recipes.FORMAT,
            "version": recipes.VERSION,
            "name": self.name,
            **{key: text for key, text in texts.items() if text},
            "rules": [rule.to_dict() for rule in self.policy.rules],
            "steps": [step.to_dict() for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Inverse of `to_dict`. The data of a policy file is a recipe without steps.

        `extends: PRESET` puts the preset's rules first; its steps apply unless `steps` are given. Raises SpecError that
        names the key, PolicyError for a preset that does not exist.
        """
        found = _read(data)
        if isinstance(found, Fault):
            raise SpecError(str(found))
        return found

    def save(self, path: str | Path) -> None:
        """Write JSON, or YAML when the name ends in .yaml or .yml; the file is whole or as it was. Raises OSError."""
        recipe_file.write(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe or policy file: what `save` or `pyquant quantize` wrote, or one written by hand.

        Raises PolicyError that names the file, the line and the key.
        """
        path = Path(path)
        data, text = recipe_file.read(path)
        try:
            found = _read(data)
        except (SpecError, PolicyError) as error:
            raise PolicyError(f"recipe file {str(path)!r}: {error}") from error
        if isinstance(found, Fault):
            raise PolicyError(f"recipe file {str(path)!r}, line {recipe_file.line(text, found.path)}: {found}")
        return found

    def __str__(self) -> str:
        lines = [f"recipe {self.name}{f': {self.description}' if self.description else ''}"]
        lines += [f"  evidence: {' '.join(self.evidence.split())}"] if self.evidence else []
        lines += [f"  steps: {', '.join(map(str, self.steps)) or 'none'}"]
        return "\n".join([*lines, *(f"  #{i} {rule}" for i, rule in enumerate(self.policy.rules))])


def _read(data: Any) -> Recipe | Fault:
    """The recipe of a file's data, or what is wrong with it."""
    if not isinstance(data, Mapping) or data.get("format") != recipes.FORMAT or "policy" in data:
        policy = Policy.from_dict(data)
        return Recipe(policy.name, policy)
    if found := recipe_file.faults(data):
        return found[0]
    rules: list[Rule] = []
    for number, rule in enumerate(data.get("rules", [])):
        try:
            rules.append(Rule.from_dict(rule))
        except SpecError as error:
            return Fault(("rules", number), str(error))
    try:
        base = Recipe.preset(data["extends"]) if "extends" in data else None
    except PolicyError as error:
        return Fault(("extends",), str(error))
    steps = tuple(Step(*_step(entry)) for entry in data.get("steps", []))
    if "steps" not in data and base is not None:
        steps = base.steps
    if fault := _misplaced(steps):
        return Fault(("steps",), fault)
    name = data.get("name", "custom")
    before = () if base is None else base.policy.rules
    texts = [data.get(key, "") for key in ("description", "evidence")]
    return Recipe(name, Policy((*before, *rules), name), steps, *texts)


def _step(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    ((name, parameters),) = entry.items()
    return name, parameters or {}


def _misplaced(steps: tuple[Step, ...]) -> str:
    """What is wrong with the order of the steps, "" for nothing."""
    for before, after in itertools.pairwise(steps):
        if _ORDER.index(before.stage) > _ORDER.index(after.stage):
            return (
                f"step {after.algorithm!r} {_MEANING[after.stage]}, and comes before {before.algorithm!r}, which "
                f"{_MEANING[before.stage]}; the order is: fold, decide, calibrate, adapt"
            )
        if before.stage == after.stage == "calibrate":
            return "calibrate is one step; leave one of them out"
    return ""
