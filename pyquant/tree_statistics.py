# SPDX-License-Identifier: Apache-2.0
"""What calibration saw of a tree, as one thing: set aside, and merged over the ranks of a group.

It owns which state of a tree is statistics, and a checksum of the rest. Merging two observers is observe/, the exchange
between processes distributed.py.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.distributed import Group
from pyquant.errors import CalibrationError
from pyquant.observe import EmaObserver, Observer
from pyquant.site import Site
from pyquant.wrap import QModule

__all__ = ["SetAside", "checksum", "merge_ranks", "require_mergeable", "running", "set_aside"]


@dataclass(frozen=True)
class SetAside:
    """Statistics of earlier calls: the observers by the paths of their sites, counts by module and name."""

    observers: dict[str, Observer]
    counts: dict[tuple[str, str], Tensor]


def require_mergeable(q: QModule) -> None:
    """Raise CalibrationError for an observer whose range depends on the order of the data."""
    if odd := [site.path for site in running(q) if isinstance(site.observer, EmaObserver)]:
        raise CalibrationError(
            f"{len(odd)} sites have the observer ema, the first is {odd[0]!r}: its average depends on the order of the "
            "batches, and several processes have none; use minmax, percentile or mse, or calibrate in one process"
        )


def set_aside(q: QModule) -> SetAside:
    """Take what was observed while the model ran out of the tree, which then starts anew."""
    observers, counts = {}, {}
    for site in running(q):
        assert site.observer is not None
        if site.observer.batches:
            observers[site.path] = site.observer
            site.observer = copy.copy(site.observer)
            site.forget()
    for module in q.all_qmodules():
        for name in module.COUNTS:
            counts[module.path, name] = getattr(module, name)
            setattr(module, name, torch.zeros_like(getattr(module, name)))
    return SetAside(observers, counts)


def merge_ranks(q: QModule, group: Group, earlier: SetAside) -> None:
    """Give the tree the statistics of all ranks, as if it had seen all their data, and those of `earlier`.

    Raises RankError.
    """
    sites = list(running(q))
    merged = group.fold("calibrate: statistics", [_Seen.of(site) for site in sites], _merged)
    for site, seen in zip(sites, merged, strict=True):
        seen.give(site, earlier.observers.get(site.path))
    modules = [(module, name) for module in q.all_qmodules() for name in module.COUNTS]
    counts = group.fold("calibrate: counts", [getattr(m, name) for m, name in modules], _added)
    for (module, name), count in zip(modules, counts, strict=True):
        setattr(module, name, count + earlier.counts[module.path, name])


def checksum(q: QModule) -> str:
    """Of the sites' paths, formats and grids, and of the weights: equal trees have equal ones.

    The integers that a tensor's bits are, added up: fast, and made to find another checkpoint or decision, not forgery.
    """
    digest = hashlib.blake2b(digest_size=16)
    for site in q.all_sites():
        digest.update(f"{site.path} {site.spec} {site.decided}".encode())
    for name, tensor in [*q.named_parameters(), *q.named_buffers()]:
        if q.state.stream is not None:
            q.state.stream.touch(tensor)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_bits(tensor)}".encode())
    return digest.hexdigest()


def _bits(tensor: Tensor) -> int:
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(integers).sum(dtype=torch.int64))


def running(q: QModule) -> Iterator[Site]:
    """The sites that observe while the model runs: all but those of constants that prepare scanned."""
    for module in q.all_qmodules():
        scanned = module.constants()
        yield from (site for name, site in module.own_sites() if site.observer is not None and name not in scanned)


@dataclass
class _Seen:
    """What one site saw: its observer on the CPU, whether its range is of other values, and whether it saw anything."""

    observer: Observer
    apart: bool
    seen: bool

    @classmethod
    def of(cls, site: Site) -> _Seen:
        assert site.observer is not None
        observer = copy.copy(site.observer)
        observer.to("cpu")
        return cls(observer, site.apart, site.last_seen > 0)

    def give(self, site: Site, earlier: Observer | None) -> None:
        assert site.observer is not None
        device = site.observer.count.device
        if earlier is not None:
            earlier.to("cpu")
            earlier.merge(self.observer)
        site.observer = self.observer if earlier is None else earlier
        site.observer.to(device)
        site.apart |= self.apart
        site.last_seen = site.last_seen or int(self.seen)


def _merged(some: list[_Seen], more: list[_Seen]) -> list[_Seen]:
    for one, other in zip(some, more, strict=True):
        one.observer.merge(other.observer)
        one.apart |= other.apart
        one.seen |= other.seen
    return some


def _added(some: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(some, more, strict=True)]
