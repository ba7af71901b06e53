# SPDX-License-Identifier: Apache-2.0
"""Groups: which sites are switched together, and how many numbers each has.

It owns finding the sites of one tensor: the output site of its producer and the input sites of its consumers round the
same value, so that a wider format helps only when all of them get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from pyquant.errors import PolicyError
from pyquant.sensitivity.formats import Part
from pyquant.site import Clip, Site

Grouping = str | Iterable[str] | Mapping[str, str | Iterable[str]]
KINDS = ("tensor", "site", "module")


@dataclass(frozen=True)
class Group:
    """Sites that are switched together, and their weights and activations."""

    name: str
    sites: tuple[Site, ...]
    parts: tuple[Part, ...]


@dataclass
class _Seen:
    """The values of one site in one run: how many elements, and their memory addresses."""

    elements: int
    memory: set[int]


class Observation:
    """One run with every site passing values: the tensors of each site."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(sites)
        self._seen: dict[Site, _Seen] = {}
        self._alive: list[Tensor] = []  # an address identifies a tensor only while nothing is freed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records the values of the sites while the block runs."""
        try:
            with ExitStack() as stack:
                for site in self._sites:
                    stack.enter_context(site.tap(self._passed))
                yield
        finally:
            self._alive.clear()

    def _passed(
        self, site: Site, x: Tensor, out: Tensor, *, clip: Clip | None, observed: Tensor | None, constant: bool
    ) -> None:
        if not constant:
            self._note(site, x.numel(), x, out)
        elif site not in self._seen:  # counted once, also for a shared layer that runs several times
            self._note(site, x.numel())

    def _note(self, site: Site, elements: int, *tensors: Tensor) -> None:
        seen = self._seen.setdefault(site, _Seen(0, set()))
        seen.elements += elements
        for tensor in tensors:
            if tensor.numel():
                self._alive.append(tensor)
                seen.memory.add(tensor.untyped_storage().data_ptr())

    @property
    def used(self) -> tuple[Site, ...]:
        """The sites with values, in tree order."""
        return tuple(site for site in self._sites if site in self._seen)

    def groups(self, by: Grouping) -> list[Group]:
        """The groups in tree order. Raises PolicyError for a grouping that does not exist, matches nothing or overlaps.

        An activation counts at its first site, so that no tensor is counted twice.
        """
        counted = {part[0]: self._part(part) for part in self._by_tensor(self.used)}
        named, found = self._named(by), []
        for name, sites in named.items():
            found.append(Group(name, tuple(sites), tuple(counted.pop(site) for site in sites if site in counted)))
        return found

    def rest(self, groups: Iterable[Group]) -> tuple[Part, ...]:
        """The tensors of used sites in no group."""
        inside = {site for group in groups for site in group.sites}
        return tuple(self._part(part) for part in self._by_tensor(self.used) if part[0] not in inside)

    def _part(self, sites: list[Site]) -> Part:
        elements = max(self._seen[site].elements for site in sites)
        bits = max(site.spec.dtype.bits for site in sites if site.spec is not None)
        return Part(elements, bits, all(site.role.is_constant for site in sites))

    def _named(self, by: Grouping) -> dict[str, list[Site]]:
        if by == "tensor":
            return {part[0].path: part for part in self._by_tensor(self.used)}
        if by == "site":
            return {site.path: [site] for site in self.used}
        if by == "module":
            modules: dict[str, list[Site]] = {}
            for site in self.used:
                modules.setdefault(site.path.rpartition(":")[0] or "(model)", []).append(site)
            return modules
        if isinstance(by, str):
            raise PolicyError(f"groups={by!r} does not exist; choose one of {', '.join(KINDS)}, or give globs")
        named = by if isinstance(by, Mapping) else {pattern: pattern for pattern in by}
        found = {}
        for name, patterns in named.items():
            globs = [patterns] if isinstance(patterns, str) else list(patterns)
            found[name] = [site for site in self.used if any(fnmatchcase(site.path, glob) for glob in globs)]
            if not found[name]:
                near = ", ".join(repr(site.path) for site in self.used[:3])
                raise PolicyError(f"groups: {globs} match no quantized site with data; paths look like {near}")
        owner: dict[Site, str] = {}
        for name, sites in found.items():
            for site in sites:
                if owner.setdefault(site, name) != name:
                    raise PolicyError(
                        f"groups {owner[site]!r} and {name!r} both have {site.path!r}; make them disjoint"
                    )
        return found

    def _by_tensor(self, sites: Iterable[Site]) -> list[list[Site]]:
        """Sites joined where they share memory: views of one tensor are one tensor."""
        part_of: dict[int, list[Site]] = {}  # memory -> its sites
        for site in sites:
            memory = self._seen[site].memory
            joined = {id(part): part for address in memory if (part := part_of.get(address)) is not None}
            members = [site, *(member for part in joined.values() for member in part)]
            addresses = {address for member in members for address in self._seen[member].memory}
            part_of.update(dict.fromkeys(addresses, members))
            if not addresses:  # constants have none: each is its own part
                part_of[-id(site)] = members
        order = {site: number for number, site in enumerate(self._sites)}
        parts = {id(members): members for members in part_of.values()}.values()
        whole = [sorted(members, key=order.__getitem__) for members in parts]
        return sorted(whole, key=lambda members: order[members[0]])
