# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: the damage of each group of sites when only it is quantized; ranked, as JSON, as a table.

It owns the numbers, their order, and the choice of groups that get more bits. Measuring is measure.py, policy rules
are formats.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyquant import files
from pyquant.errors import PolicyError
from pyquant.metrics import to_plain
from pyquant.policy import Policy
from pyquant.sensitivity.formats import WIDTHS, Bits, Part, SiteFormat, mean_bits, widened

FORMAT = "pyquant-sensitivity-1"
ORDERS = ("sqnr", "peir", "loss")


@dataclass(frozen=True)
class Damage:
    """How far the output is from that of the float tree. The worst output tensor counts.

    peir: max|difference| / (max - min of the reference). sqnr: in dB, infinite when nothing changed. loss: by how much
    the caller's loss rises, None without one.
    """

    peir: float
    sqnr: float
    loss: float | None = None

    def harm(self, by: str) -> float:
        """The quantity that is added up and compared: the share of noise power, PEIR, or the rise of the loss."""
        if by == "sqnr":
            return 10 ** (-self.sqnr / 10) if self.sqnr > -math.inf else math.inf
        return self.peir if by == "peir" else self.loss or 0.0


@dataclass(frozen=True)
class GroupDamage:
    """One group: its sites, their tensors, and the damage of quantizing only this group."""

    name: str
    sites: tuple[SiteFormat, ...]
    parts: tuple[Part, ...]
    damage: Damage

    @property
    def bits(self) -> int:
        """The narrowest format among its sites."""
        return min(site.spec.dtype.bits for site in self.sites)

    def harm(self, by: str, width: int = 0) -> float:
        """Damage.harm when the sites are `width` bits wide: each bit halves the error, and quarters its power."""
        return self.damage.harm(by) * (2.0 if by == "peir" else 4.0) ** -max(width - self.bits, 0)

    def total(self, width: int = 0) -> int:
        """Bits of all its tensors when each is at least `width` wide."""
        return sum(part.total(width) for part in self.parts)


@dataclass(frozen=True)
class Sensitivity:
    """The groups in tree order, the damage of all sites together, and the policy that they were quantized by.

    `rest`: weights and activations in no group; they count in mean bit widths. `unused`: paths of sites without data.
    `settled`: paths of weights that were measured against themselves, so that quantizing them changed nothing.
    """

    model: str
    policy: Policy
    together: Damage
    groups: tuple[GroupDamage, ...]
    rest: tuple[Part, ...] = ()
    unused: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()

    def ranked(self, by: str = "sqnr") -> tuple[GroupDamage, ...]:
        """The most harmful first: `sqnr` (lowest), `peir` or `loss` (highest). Equal ones stay in tree order."""
        have = ORDERS if self.together.loss is not None else ORDERS[:2]
        if by not in have:
            raise PolicyError(f"by={by!r}: choose one of {', '.join(have)}; loss needs sensitivity(..., loss=)")
        return tuple(sorted(self.groups, key=lambda group: -group.damage.harm(by)))

    def bits(self, widths: Mapping[str, int] | None = None) -> Bits:
        """Mean bit widths of the policy, or with some groups (name -> bits) made wider.

        Weights and constants are counted by parameter, activations by element of the first batch.
        """
        widths = self._known(widths or {})
        parts = [(part, widths.get(group.name, 0)) for group in self.groups for part in group.parts]
        return mean_bits([*parts, *((part, 0) for part in self.rest)])

    def choose(
        self,
        worst: int | None = None,
        *,
        budget: float | None = None,
        widths: Sequence[int] = (16,),
        by: str = "sqnr",
        among: Iterable[str] | None = None,
    ) -> dict[str, int]:
        """Which groups should get more bits, and how many: name -> width, the most harmful first.

        worst: that many of the most harmful groups get the largest of `widths`.
        budget: the mean bit width (that of `bits`) of the result; steps are taken in the order of harm removed per bit,
            one of `widths` after the other, and a step that no longer fits is skipped.
        among: names of groups that may be chosen; None: all.

        Raises PolicyError for both or neither of `worst` and `budget`, for a budget below the present mean bit width,
        and for widths other than 8 and 16.
        """
        if not widths or not set(widths) <= set(WIDTHS):
            raise PolicyError(f"widths={tuple(widths)}: sites are made {' or '.join(map(str, WIDTHS))} bits wide")
        if (worst is None) == (budget is None):
            raise PolicyError(f"give either worst=K groups or budget=MEAN bits, got {worst = } and {budget = }")
        allowed = {group.name for group in self.groups} if among is None else set(self._known(dict.fromkeys(among, 0)))
        ranked = [g for g in self.ranked(by) if g.bits < max(widths) and g.name in allowed]
        if worst is not None:
            if worst < 0:
                raise PolicyError(f"worst={worst}: it is how many groups get {max(widths)} bits")
            return {group.name: max(widths) for group in ranked[:worst]}
        assert budget is not None
        return self._within(budget, ranked, sorted(set(widths)), by)

    def _within(self, budget: float, ranked: list[GroupDamage], widths: list[int], by: str) -> dict[str, int]:
        parts = [*(part for group in self.groups for part in group.parts), *self.rest]
        left = budget * sum(part.elements for part in parts) - sum(part.total() for part in parts)
        if left < 0:
            raise PolicyError(
                f"budget={budget:g} bits, but policy {self.policy.name!r} has a mean of {self.bits().mean:.4f} as it "
                "is; give a larger budget, or start from a narrower recipe"
            )
        steps = []
        for group in ranked:
            before = 0
            for width in widths:
                if width > group.bits:
                    gain = group.harm(by, before) - group.harm(by, width)
                    cost = group.total(width) - group.total(before)
                    steps.append((gain / cost if cost else math.inf, gain, cost, group.name, before, width))
                    before = width
        chosen: dict[str, int] = {}
        for _, gain, cost, name, before, width in sorted(steps, key=lambda step: -step[0]):
            if gain > 0 and cost <= left and chosen.get(name, 0) == before:
                left -= cost
                chosen[name] = width
        return chosen

    def mixed_policy(
        self,
        worst: int | None = None,
        *,
        budget: float | None = None,
        widths: Sequence[int] = (16,),
        by: str = "sqnr",
        among: Iterable[str] | None = None,
    ) -> Policy:
        """The policy that gives the groups of `choose` (same arguments) their bits; its `save` writes it."""
        return self.policy_of(self.choose(worst, budget=budget, widths=widths, by=by, among=among))

    def policy_of(self, widths: Mapping[str, int]) -> Policy:
        """The policy with some groups (name -> bits) made wider."""
        chosen = self._known(widths)
        return widened(
            self.policy, [(site, chosen[g.name]) for g in self.groups if g.name in chosen for site in g.sites]
        )

    def _known(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        known = {group.name for group in self.groups}
        if unknown := sorted(set(widths) - known):
            raise PolicyError(f"no group is named {unknown[0]!r}; names look like {sorted(known)[:3]}")
        return widths

    # --- files and text ---

    def to_json(self) -> str:
        """All of it, infinities as text. Equal results give equal text."""
        groups = [
            {
                "name": group.name,
                "sites": [site.to_dict() for site in group.sites],
                "parts": [asdict(part) for part in group.parts],
                "damage": _damage_data(group.damage),
            }
            for group in self.groups
        ]
        data = {
            "format": FORMAT,
            "model": self.model,
            "policy": self.policy.to_dict(),
            "together": _damage_data(self.together),
            "groups": groups,
            "rest": [asdict(part) for part in self.rest],
            "unused": list(self.unused),
            "settled": list(self.settled),
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`. Raises PolicyError for another text."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            groups = tuple(
                GroupDamage(
                    item["name"],
                    tuple(SiteFormat.from_dict(site) for site in item["sites"]),
                    tuple(Part(**part) for part in item["parts"]),
                    _damage(item["damage"]),
                )
                for item in data["groups"]
            )
            rest = tuple(Part(**part) for part in data["rest"])
            policy = Policy.from_dict(data["policy"])
            settled = tuple(data.get("settled", []))
            return cls(data["model"], policy, _damage(data["together"]), groups, rest, tuple(data["unused"]), settled)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(
                f"expected JSON of format {FORMAT!r}, as Sensitivity.to_json writes it: {error}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes `to_json`; the file is whole or as it was. Raises OSError."""
        files.whole_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Reads what `save` wrote."""
        if why := files.absent(Path(path)):
            raise PolicyError(f"{str(path)!r} {why}")
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def table(self, count: int | None = None, by: str = "sqnr") -> str:
        """The `count` most harmful groups (None: all) as text, a line each."""
        shown = self.ranked(by)[:count]
        rows = [("#", "group", "sites", "format", "elements", "SQNR dB", "PEIR", "loss")]
        for number, group in enumerate(shown, 1):
            elements = sum(part.elements for part in group.parts)
            formats = "/".join(dict.fromkeys(str(site.spec.dtype) for site in group.sites))
            rows.append(
                (str(number), group.name, str(len(group.sites)), formats, f"{elements:,}", *_cells(group.damage))
            )
        rows.append(("", "all together", str(sum(len(g.sites) for g in self.groups)), "", "", *_cells(self.together)))
        widths = [max(len(row[column]) for row in rows) for column in range(8)]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (1, 3) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        head = f"{self.model}, policy {self.policy.name}: {len(self.groups)} groups, mean {self.bits()}"
        foot = (
            f"{len(self.settled)} weights are on their grid already (decided, or loaded), and were measured against "
            "themselves; sensitivity(..., reference=) measures them"
        )
        return "\n".join([head, *lines, *([foot] if self.settled else [])])

    def __str__(self) -> str:
        return self.table(20)


def _cells(damage: Damage) -> tuple[str, str, str]:
    loss = "-" if damage.loss is None else f"{damage.loss:+.4g}"
    return f"{damage.sqnr:.1f}", f"{damage.peir:.3%}", loss


def _damage_data(damage: Damage) -> dict[str, Any]:
    return to_plain(asdict(damage))


def _damage(data: dict[str, Any]) -> Damage:
    loss = data["loss"]
    return Damage(float(data["peir"]), float(data["sqnr"]), None if loss is None else float(loss))
