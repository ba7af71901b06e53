# SPDX-License-Identifier: Apache-2.0
"""Policy: which sites get which number format, as an ordered list of rules that is data.

It owns matching, the file form and the explanation of a choice. Presets are recipes/; what a format is, is spec.py.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pyquant import recipe_file, recipes
from pyquant.errors import PolicyError, SpecError
from pyquant.role import Role
from pyquant.spec import BlockSpec, QuantSpec

FORMAT, VERSION = "pyquant-policy", 1

# kind -> its parameters and whether each must be given
_OBSERVERS: dict[str, dict[str, bool]] = {
    "minmax": {},
    "ema": {"momentum": False},
    "percentile": {"lower": False, "upper": False, "bins": False},
    "mse": {"bins": False},
    "fixed": {"lo": True, "hi": True},
}


def literal(path: str) -> str:
    """The glob that matches this site path and no other: `[`, `*` and `?` in it stand for themselves."""
    return glob.escape(path)


@dataclass(frozen=True)
class ObserverSpec:
    """How a range is found: `ObserverSpec("percentile", {"upper": 99.9})`.

    Raises SpecError for an unknown kind or parameter.
    """

    kind: str = "minmax"
    params: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _OBSERVERS:
            raise SpecError(f"observer {self.kind!r} does not exist; choose one of {', '.join(_OBSERVERS)}")
        known = _OBSERVERS[self.kind]
        unknown = [name for name in self.params if name not in known]
        missing = [name for name, required in known.items() if required and name not in self.params]
        if unknown or missing:
            raise SpecError(
                f"observer {self.kind!r} takes the parameters {list(known)}, got {list(self.params)}"
                + (f"; {', '.join(missing)} must be given" if missing else "")
            )
        for name, value in self.params.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SpecError(f"observer {self.kind!r}: {name} must be a number, got {value!r}")
        object.__setattr__(self, "params", MappingProxyType(dict(sorted(self.params.items()))))

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.params.items())))

    def __reduce__(self) -> tuple[type[ObserverSpec], tuple[str, dict[str, float]]]:
        return ObserverSpec, (self.kind, dict(self.params))

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{k}={v}' for k, v in self.params.items())})" if self.params else self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        return {"kind": self.kind, **self.params}

    @classmethod
    def from_dict(cls, data: Any) -> ObserverSpec:
        """Inverse of `to_dict`; a bare name is a kind without parameters."""
        if isinstance(data, str):
            return cls(data)
        if not isinstance(data, Mapping) or "kind" not in data:
            raise SpecError(f"an observer is a name or {{kind: NAME, PARAMETER: NUMBER}}, got {data!r}")
        return cls(data["kind"], {k: v for k, v in data.items() if k != "kind"})


@dataclass(frozen=True)
class Rule:
    """`spec` and `observer` for every site that `match` and `role` pick.

    `match` is a glob over the site path (`encoder.layers.*.mlp.gate_proj:weight`); `*` also crosses dots, and a
    pattern without ':' may also match the module path alone (`lm_head`). `role` None means every role. `spec` None
    means stay float. An `optional` rule may match nothing; any other that matches nothing is an error in prepare.
    """

    match: str
    role: Role | None = None
    spec: QuantSpec | None = None
    observer: ObserverSpec = ObserverSpec()
    optional: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.match, str) or not self.match:
            raise SpecError(
                f"a rule needs a pattern over site paths such as '*' or '*.mlp.*:weight', got {self.match!r}"
            )
        if isinstance(self.role, str):
            try:
                object.__setattr__(self, "role", Role.parse(self.role))
            except ValueError as error:
                raise SpecError(f"rule {self.match!r}: {error}") from None
        if not isinstance(self.spec, QuantSpec | None) or not isinstance(self.observer, ObserverSpec):
            raise SpecError(
                f"rule {self.match!r} needs a QuantSpec or None, and an ObserverSpec; got {self.spec!r} and "
                f"{self.observer!r}"
            )
        if isinstance(self.spec, BlockSpec):
            if self.observer != ObserverSpec():
                raise SpecError(f"rule {self.match!r}: {self.spec} find their own scales; leave out the observer")
            if self.role is not None and not self.role.is_kernel:
                raise SpecError(
                    f"rule {self.match!r}: {self.spec} are for the roles weight and embedding, got {self.role.value}"
                )

    def matches(self, path: str, role: Role) -> bool:
        """True when this rule matches the site `path` of `role`."""
        if self.role is not None and not self.role.covers(role):
            return False
        if fnmatchcase(path, self.match):
            return True
        return ":" not in self.match and fnmatchcase(path.rpartition(":")[0], self.match)

    def __str__(self) -> str:
        role = f", role={self.role.value}" if self.role else ""
        return f"{self.match!r}{role} -> {f'{self.spec}, {self.observer}' if self.spec else 'float'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        out: dict[str, Any] = {"match": self.match}
        if self.role is not None:
            out["role"] = self.role.value
        out["spec"] = None if self.spec is None else self.spec.to_dict()
        if self.observer != ObserverSpec():
            out["observer"] = self.observer.to_dict()
        if self.optional:
            out["optional"] = True
        return out

    @classmethod
    def from_dict(cls, data: Any) -> Rule:
        """Inverse of `to_dict`. Raises SpecError that names the key that does not fit."""
        _check_keys(data, {"match", "role", "spec", "observer", "optional"}, {"match", "spec"}, "a rule")
        spec, optional = data["spec"], data.get("optional", False)
        if spec is not None and not isinstance(spec, Mapping):
            raise SpecError(f"rule {data['match']!r}: spec is {{dtype: ..., ...}} or null for float, got {spec!r}")
        if not isinstance(optional, bool):
            raise SpecError(f"rule {data['match']!r}: optional is true or false, got {optional!r}")
        return cls(
            data["match"],
            data.get("role"),
            None if spec is None else QuantSpec.from_dict(dict(spec)),
            ObserverSpec.from_dict(data.get("observer", "minmax")),
            optional,
        )


class SiteLike(Protocol):
    """What a policy needs to know of a site."""

    path: str
    role: Role


class HasSites(Protocol):
    """A tree of wrappers."""

    def all_sites(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Assignment:
    """One line of an explanation: a site, and the rule (with its index) that applies to it; None: no rule, float.

    decided: the format of a grid that was decided before convert, and by whom; it takes the place of the rule's.
    """

    path: str
    role: Role
    index: int | None
    rule: Rule | None
    decided: tuple[QuantSpec, str] | None = None


@dataclass(frozen=True)
class Explanation:
    """Site -> rule -> format, for a whole tree. Printing it gives the table."""

    policy: str
    choices: tuple[Assignment, ...]

    def __str__(self) -> str:
        rows = [("site", "role", "rule", "format", "range")]
        for c in self.choices:
            rule = "no rule" if c.rule is None else f"#{c.index} {c.rule.match}"
            spec = c.rule.spec if c.rule else None
            found = "" if spec is None or c.rule is None else str(c.rule.observer)
            if spec is not None and c.role.known_range is not None:
                found = "known"
            if isinstance(spec, BlockSpec):
                found = "per block"
            if c.decided is not None:
                spec, rule = c.decided[0], f"{c.decided[1]} (not {rule})"
                found = "decided"
            rows.append((c.path, c.role.value, rule, str(spec) if spec else "float", found))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"policy {self.policy}: {len(self.choices)} sites", *lines])


@dataclass(frozen=True)
class Policy:
    """An ordered list of rules: the last one that matches a site applies; a site that none matches stays float."""

    rules: tuple[Rule, ...] = ()
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise SpecError(f"a policy consists of Rules, got {rule!r}")

    @classmethod
    def preset(cls, name: str) -> Policy:
        """The policy of a recipe that comes with pyquant: which site gets which format, for prepare.

        The steps of the recipe are no part of it; `pyquant.quantize` runs them (recipe.py). Raises PolicyError that
        lists the names.
        """
        if name not in recipes.names():
            raise PolicyError(f"preset {name!r} does not exist; choose one of {', '.join(recipes.names())}")
        return cls.from_dict(recipes.read(name))

    def with_rule(self, *rules: Rule) -> Policy:
        """A policy with `rules` after these; where both match, `rules` apply."""
        return Policy((*self.rules, *rules), self.name)

    def __add__(self, other: Policy | Rule | Iterable[Rule]) -> Policy:
        if isinstance(other, Rule):
            return self.with_rule(other)
        return self.with_rule(*(other.rules if isinstance(other, Policy) else other))

    def choose(self, path: str, role: Role) -> Assignment:
        """The rule that decides a site."""
        for index in range(len(self.rules) - 1, -1, -1):
            if self.rules[index].matches(path, role):
                return Assignment(path, role, index, self.rules[index])
        return Assignment(path, role, None, None)

    def explain(self, q: HasSites) -> Explanation:
        """Site -> rule -> format for the tree `q`, and where a format comes from that is not a rule's."""
        return Explanation(self.name, tuple(self._explained(site) for site in q.all_sites()))

    def _explained(self, site: SiteLike) -> Assignment:
        choice, how = self.choose(site.path, site.role), getattr(site, "decided", "")
        spec: QuantSpec | None = getattr(site, "spec", None)
        return choice if spec is None or not how else replace(choice, decided=(spec, how))

    def check_used(self, sites: Sequence[SiteLike]) -> None:
        """Raise PolicyError that names each rule, not optional, that matches none of `sites`, and what is near it."""
        problems = []
        for index, rule in enumerate(self.rules):
            if rule.optional or any(rule.matches(site.path, site.role) for site in sites):
                continue
            problems.append(f"  rule #{index} {rule}: {_near(rule, sites)}")
        if problems:
            raise PolicyError(
                f"policy {self.name!r}: {len(problems)} of {len(self.rules)} rules match no site of this model; "
                f"correct the pattern or role, or mark the rule optional\n" + "\n".join(problems)
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        rules = [rule.to_dict() for rule in self.rules]
        return {"format": FORMAT, "version": VERSION, "name": self.name, "rules": rules}

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """Inverse of `to_dict`. `extends: PRESET` puts the preset's rules first. Of a recipe it takes the policy.

        Raises SpecError or PolicyError.
        """
        data = recipes.policy_part(data)
        _check_keys(
            data, {"format", "version", "name", "description", "extends", "rules"}, {"format", "version"}, "a policy"
        )
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise SpecError(
                f"expected format {FORMAT!r} version {VERSION}, got {data['format']!r} version {data['version']!r}; "
                f"a newer file needs a newer pyquant"
            )
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise SpecError(f"the rules of a policy are a list, got {type(rules).__name__}")
        base = cls.preset(data["extends"]).rules if "extends" in data else ()
        return cls((*base, *(Rule.from_dict(rule) for rule in rules)), data.get("name", "custom"))

    def save(self, path: str | Path) -> None:
        """Write JSON, or YAML when the name ends in .yaml or .yml; the file is whole or as it was. Raises OSError."""
        recipe_file.write(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read what `save` wrote, a file written by hand, or the policy in a recipe file, whose steps are no part of it
        (Recipe.load reads these). Errors name the file."""
        path = Path(path)
        data, _ = recipe_file.read(path, "policy")
        try:
            return cls.from_dict(data)
        except SpecError as error:
            raise PolicyError(f"policy file {str(path)!r}: {error}") from error

    def __str__(self) -> str:
        return "\n".join([f"policy {self.name}", *(f"  #{i} {rule}" for i, rule in enumerate(self.rules))])


def _check_keys(data: Any, known: set[str], required: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise SpecError(f"{what} is a mapping with the keys {sorted(known)}, got {data!r}")
    unknown, missing = sorted(map(str, set(data) - known)), sorted(required - set(data))
    if unknown or missing:
        raise SpecError(
            f"{what} has the keys {sorted(known)}"
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )


def _near(rule: Rule, sites: Sequence[SiteLike]) -> str:
    """Why nothing matched, with paths that the user may have meant."""
    other_roles = sorted({s.role.value for s in sites if Rule(rule.match, None).matches(s.path, s.role)})
    if other_roles:
        return f"its pattern matches sites, but of role {', '.join(other_roles)}"
    near = difflib.get_close_matches(rule.match, [s.path for s in sites], n=3, cutoff=0.4)
    near = near or [s.path for s in sites][:3]
    return f"nearest sites are {', '.join(map(repr, near))}" if near else "the model has no sites"
