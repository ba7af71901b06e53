# SPDX-License-Identifier: Apache-2.0
"""What wrappers declare about how their weights belong together, as objects: for algorithms, which know no family.

It owns resolving the declarations (QModule.SHARED, FEEDS, PAIRS, READS, WRITES, BLOCKS) to modules of one tree. What is
done with them is algorithms/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyquant.wrap.base import QModule
from pyquant.wrap.norm import QuantLayerNorm, QuantRMSNorm

__all__ = ["Blocks", "Feed", "Pair", "Stream", "blocks", "feeds", "pairs", "shared_inputs", "streams"]


@dataclass(frozen=True)
class Feed:
    """A norm, and every module that reads its output: a scale of the norm's channels can move into the readers.

    A reader's weight is (out, channels), or has columns that are the channels several times side by side (a merger of
    patches: in_features is a multiple of the norm's width).
    """

    norm: QModule
    readers: tuple[QModule, ...]


@dataclass(frozen=True)
class Pair:
    """Two linears between which a scale of channels can move: column c of the consumer multiplies what row `rows[c]` of
    the producer makes, times something that does not depend on it.

    heads: the size of a head, where the channels are those of attention values, which are added up within a head: then
    a rotation of a head's channels can move too. None for other pairs.
    """

    producer: QModule
    consumer: QModule
    rows: Tensor
    heads: int | None


@dataclass(frozen=True)
class Stream:
    """The residual stream of a tower at `path`: who adds to it (linears, whose rows are its channels, and tables, whose
    columns are) and who reads it (norms with what they feed).

    obstacles: modules that add to it or read it in another way, so that no rotation can be folded into the weights.
    """

    path: str
    writers: tuple[QModule, ...]
    readers: tuple[Feed, ...]
    obstacles: tuple[QModule, ...]


@dataclass(frozen=True)
class Blocks:
    """Modules that run one after the other, each on what the one before it returned: the layers of the tower at
    `path`."""

    path: str
    modules: tuple[QModule, ...]


def shared_inputs(q: QModule) -> dict[QModule, QModule]:
    """Linear -> the first of those that multiply the same input, itself included. Others share with nobody."""
    leaders: dict[QModule, QModule] = {}
    for module in q.all_qmodules():
        for names in module.SHARED:
            found = [linear for name in names for linear in _children(module, name) if _is_linear(linear)]
            leaders |= dict.fromkeys(found, found[0]) if found else {}
    return leaders


def feeds(q: QModule) -> list[Feed]:
    """Every norm of the tree whose readers are declared, and are in it."""
    found = []
    for module in q.all_qmodules():
        for name, names in module.FEEDS.items():
            readers = [reader for one in names for reader in _children(module, one)]
            if readers and all(map(_is_linear, readers)):
                found += [Feed(norm, tuple(readers)) for norm in _children(module, name)]
    return found


def pairs(q: QModule) -> list[Pair]:
    """Every pair of the tree that is declared, and is made of linears."""
    found = []
    for module in q.all_qmodules():
        for one, two in module.PAIRS:
            producers, consumers = _children(module, one), _children(module, two)
            if not all(map(_is_linear, [*producers, *consumers])):
                continue
            for producer, consumer in zip(producers, consumers, strict=False):
                rows, heads = module.pair_rows(one, two)
                if rows is None:
                    width = consumer.get_parameter("weight").shape[1]
                    rows = torch.arange(width, dtype=torch.int64, device="cpu")
                found.append(Pair(producer, consumer, rows, heads))
    return found


def streams(q: QModule) -> list[Stream]:
    """The residual stream of every tower that declares one."""
    feeds_of = {feed.norm: feed for feed in feeds(q)}
    found = []
    for owner in q.all_qmodules():
        if owner.BLOCKS is None or not owner.WRITES:
            continue
        parts = [owner, *_blocks_of(owner)]
        writers = [module for part in parts for name in part.WRITES for module in _children(part, name)]
        for other in q.all_qmodules():  # features of another tower
            for name, names in other.WRITES_TO.items():
                if owner in _children(other, name):
                    writers += [module for one in names for module in _children(other, one)]
        readers = [module for part in parts for name in part.READS for module in _children(part, name)]
        odd = [m for m in writers if not _is_writer(m)] + [m for m in readers if m not in feeds_of]
        found.append(
            Stream(
                owner.path,
                tuple(m for m in writers if _is_writer(m)),
                tuple(feeds_of[m] for m in readers if m in feeds_of),
                tuple(odd),
            )
        )
    return found


def blocks(q: QModule) -> list[Blocks]:
    """The lists of blocks of the tree, in tree order."""
    return [Blocks(module.path, _blocks_of(module)) for module in q.all_qmodules() if module.BLOCKS is not None]


def _blocks_of(owner: QModule) -> tuple[QModule, ...]:
    assert owner.BLOCKS is not None
    return tuple(_children(owner, f"{owner.BLOCKS}.*"))


def _children(module: QModule, name: str) -> list[QModule]:
    """The wrappers at the dotted `name` below `module`, none for an absent one; `*`: every entry of a list."""
    found: list[nn.Module] = [module]
    for part in name.split("."):
        below = [list(one.children()) if part == "*" else [getattr(one, part, None)] for one in found]
        found = [child for children in below for child in children if child is not None]
    assert all(isinstance(one, QModule) for one in found), f"{type(module).__name__} declares {name!r}: {found}"
    return [one for one in found if isinstance(one, QModule)]


def _is_linear(module: QModule) -> bool:
    return hasattr(module, "watch_rows")


def _is_writer(module: QModule) -> bool:
    return not isinstance(module, QuantRMSNorm | QuantLayerNorm) and module._parameters.get("weight") is not None
