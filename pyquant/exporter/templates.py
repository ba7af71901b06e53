# SPDX-License-Identifier: Apache-2.0
"""Calls of blocks while a graph is recorded: the first of equal ones in full, the others as one node each.

It owns the marks in the recorded graph, and which calls are equal: those whose blocks have one likeness, with
arguments of one form. What becomes of the marks is splice.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyquant.likeness import form, frozen

_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_LIBRARY: Any = torch.library.Library("pyquant_trace", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("mark(Tensor[] given, int call, str forms) -> Tensor[]")
MARK = torch.ops.pyquant_trace.mark.default


@torch.library.impl(_LIBRARY, "mark", "Meta")
def _mark(given: Sequence[Tensor], call: int, forms: str) -> list[Tensor]:
    """New tensors of the forms that `_encoded` wrote down."""
    out = []
    for each in forms.split(";"):
        dtype, *numbers = map(int, each.split(",")) if each else (-1,)
        if dtype >= 0:
            sizes, strides = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
            out.append(torch.empty_strided(sizes, strides, dtype=_DTYPES[dtype], device="meta"))
    return out


def _encoded(tensors: Sequence[Tensor]) -> str:
    """Types, shapes and strides as one argument of an operator: torch.export looks at every number of a list."""
    return ";".join(",".join(map(str, (_DTYPES.index(t.dtype), *t.shape, *t.stride()))) for t in tensors)


class Block(Protocol):
    """A block of a graph; see wrap.adapter.GraphBlock."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def likeness(self) -> Any: ...


class UnequalError(Exception):
    """A block that was to be taken from another one is called in a way in which no equal one was."""

    def __init__(self, block: Block) -> None:
        super().__init__(block.names[0])
        self.block = block


@dataclass(frozen=True)
class Outputs:
    """What a call returned: its tensors in order, and everything else."""

    tensors: tuple[int, ...]
    forms: str
    leaves: tuple[Any, ...]
    spec: Any

    def again(self, tensors: Sequence[Tensor]) -> Any:
        """The same with other tensors."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.tensors, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass
class Call:
    """One mark. kind: where a call that is recorded in full begins and ends, or a whole call that is not."""

    kind: Literal["begin", "end", "copy"]
    block: Block
    key: Hashable


@dataclass
class Known:
    """A call that was recorded in full: what it returned, and which of its sites clamped (their path in the block)."""

    outputs: Outputs
    clamps: Mapping[tuple[str, Any], Any] = field(default_factory=dict)


class Calls:
    """Sees the calls of `blocks` while one graph is recorded; those in `hidden` are to be taken from equal ones, which
    are in `known` or come first. See tree_state.BlockCalls.

    kinds: a number for each block, one for all of one likeness.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        kinds: Sequence[int],
        hidden: Sequence[Block],
        known: Mapping[Hashable, Known],
    ) -> None:
        self.marks: list[Call] = []
        self._kinds = {id(block): kind for block, kind in zip(blocks, kinds, strict=True)}
        self.known = dict(known)
        self._hidden = {id(block) for block in hidden}
        self._places = {
            id(vars(module)): (block, name) for block in blocks for name, module in block.module.named_modules()
        }
        self._clamps: dict[tuple[str, Any], Any] | None = None  # of the call that is recorded now

    def run(self, block: nn.Module, run: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        """What `run(block, *given)` returns. Raises UnequalError for a hidden block without an equal call."""
        own, name = self._places.get(id(vars(block)), (None, ""))  # torch.export may pass a proxy with the same vars
        if own is None or self._clamps is not None:
            return run(block, *given)
        leaves, spec = pytree.tree_flatten(given)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        forms = tuple(form(leaf) if isinstance(leaf, Tensor) else frozen(leaf) for leaf in leaves)
        key = (self._kinds[id(own)], name, run, spec, forms)
        known = self.known.get(key)
        if id(own) in self._hidden:
            if known is None or not self._same_clamps(own, known):
                raise UnequalError(own)
            return known.outputs.again(self._mark("copy", own, key, tensors, known.outputs.forms))
        if known is not None or any(t.dtype not in _DTYPES for t in tensors):
            return run(block, *given)
        marked = iter(self._mark("begin", own, key, tensors, _encoded(tensors)))
        self._clamps = {}
        try:
            result = run(
                block, *pytree.tree_unflatten([next(marked) if isinstance(x, Tensor) else x for x in leaves], spec)
            )
        finally:
            clamps, self._clamps = self._clamps, None
        return self._ended(own, key, result, clamps)

    def _ended(self, block: Block, key: Hashable, result: Any, clamps: Mapping[tuple[str, Any], Any]) -> Any:
        leaves, spec = pytree.tree_flatten(result)
        tensors = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        rest = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        outputs = Outputs(tuple(tensors), _encoded(list(tensors.values())), rest, spec)
        self.known[key] = Known(outputs, clamps)
        return outputs.again(self._mark("end", block, key, list(tensors.values()), outputs.forms))

    def _mark(
        self, kind: Literal["begin", "end", "copy"], block: Block, key: Hashable, given: list[Tensor], forms: str
    ) -> list[Tensor]:
        self.marks.append(Call(kind, block, key))
        out: list[Tensor] = MARK(given, len(self.marks) - 1, forms)
        return out

    def clipped(self, site: Any, clip: tuple[float | None, float | None]) -> None:
        """As of tree_state.BlockCalls."""
        if self._clamps is not None:
            _, name = self._places[id(vars(site))]
            self._clamps[name, clip] = site.clamp_of(clip)

    @staticmethod
    def _same_clamps(block: Block, known: Known) -> bool:
        sites: list[Any] = [block.module.get_submodule(name) for name, _ in known.clamps]
        return all(s.clamp_of(c) == out for s, ((_, c), out) in zip(sites, known.clamps.items(), strict=True))
