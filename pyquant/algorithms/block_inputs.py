# SPDX-License-Identifier: Apache-2.0
"""What the blocks of a model are called with, recorded while whole batches run, so that each can be called alone.

It owns the recorded calls and running one block on one of them. In which order blocks run is blocks.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from pyquant.batch import call as call_model
from pyquant.batch import tensor_digest
from pyquant.errors import InputError
from pyquant.stream import Stream
from pyquant.wrap import QModule
from pyquant.wrap.hf_facts import CACHE_NAMES
from pyquant.wrap.hf_model import QModel
from pyquant.wrap.structure import Blocks

__all__ = ["Call", "Shelf", "record"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Call:
    """One call of a list of blocks, one after the other.

    hidden: what the next block gets, with what was added before it; block 0's input at first. arguments: the other
    arguments of each block that ran. Dictionaries in them (shared keys) are one object in all blocks, which earlier
    blocks fill for later ones. added: what the model adds to a block's output before the next one, by the next one's
    number (features of another tower), where it adds something.
    """

    hidden: Tensor
    arguments: list[Arguments] = field(default_factory=list)
    added: dict[int, Tensor] = field(default_factory=dict)
    keep: Callable[[Tensor], Tensor] | None = None  # puts a new hidden state in its place, where that is a file

    def run(self, number: int, block: QModule, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What `block`, the one of this number, returns for `hidden`; with `weights` (by their names in the block)
        instead of its own."""
        args, kwargs = self.arguments[number]
        if weights is None:
            return cast(Tensor, block(self.hidden, *args, **kwargs))
        return cast(Tensor, functional_call(block, dict(weights), (self.hidden, *args), kwargs))

    def go_on(self, number: int, output: Tensor) -> None:
        """`output` is what block `number` returned: it becomes the input of the next one."""
        self.arguments[number] = ((), {})  # masks and tables of a block that is done are given back
        addend = self.added.get(number + 1)
        hidden = output if addend is None else output + addend
        self.hidden = hidden if self.keep is None else self.keep(hidden)

    def twin(self) -> Call:
        """Another call of the same tensors, whose dictionaries are its own."""
        copies: dict[int, dict[Any, Any]] = {}
        return Call(
            self.hidden, [_arguments(*each, _own_dicts(copies)) for each in self.arguments], self.added, self.keep
        )


class Shelf:
    """Where hidden states lie: in memory, and those beyond the cache of a stream in its files.

    copies: how many calls there are of each that is recorded.
    """

    def __init__(self, stream: Stream | None, copies: int = 1) -> None:
        self._stream = stream
        self._left = float("inf") if stream is None else stream.cache_gb * 1e9 / copies

    def call(self, hidden: Tensor) -> Call:
        """A new call, whose hidden states go to files from now on where they do not fit the cache."""
        self._left -= hidden.numel() * hidden.element_size()
        return Call(hidden) if self._left >= 0 else Call(self._keep(hidden), keep=self._keep)

    def _keep(self, hidden: Tensor) -> Tensor:
        assert self._stream is not None
        kept = self._stream.keep(hidden)
        self._stream.touch(kept)
        return kept


def record(
    q: QModule, batches: Iterable[Any], towers: Sequence[Blocks], shelf: Shelf | None = None
) -> tuple[dict[str, list[Call]], dict[str, int]]:
    """Run `q` on every batch -> the calls of each tower by its path, and the place of each among them, in the order in
    which they run; -1 for one that did not.

    A batch calls a tower several times where it runs rows one by one, and not at all without data for it. Equal tensors
    are kept once, hidden states on the `shelf`. The phase of `q`, and whether it takes statistics meanwhile, is the
    caller's. Raises InputError for a batch with a KV cache.
    """
    found: dict[str, list[Call]] = {tower.path: [] for tower in towers}
    places = dict.fromkeys(found, -1)
    known: WeakValueDictionary[Any, Tensor] = WeakValueDictionary()
    shelf = shelf or Shelf(None)
    for number, batch in enumerate(batches):
        recorder = _Recorder(found, known, shelf)
        with recorder.hooked(towers):
            call_model(q, _without_cache(q, batch, number))
        for place, path in enumerate(recorder.order):
            places[path] = max(places[path], place)
    return found, dict(sorted(places.items(), key=lambda item: item[1]))


class _Recorder:
    """The hooks of one batch."""

    def __init__(self, found: dict[str, list[Call]], known: WeakValueDictionary[Any, Tensor], shelf: Shelf) -> None:
        self._shelf = shelf
        self.order: dict[str, None] = {}
        self._found, self._known = found, known
        self._kept: dict[int, tuple[object, Any]] = {}  # by identity; the value is kept alive for that
        self._last: Tensor | None = None

    @contextmanager
    def hooked(self, towers: Sequence[Blocks]) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for tower in towers:
                for number, block in enumerate(tower.modules):
                    hook = self._entry(tower.path, number)
                    handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
                    handles.append(block.register_forward_hook(self._exit))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entry(self, path: str, number: int) -> Any:
        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert args, f"block {number} of {path!r} is called with keywords alone"
            assert isinstance(args[0], Tensor), f"block {number} of {path!r} is called with no tensor"
            self.order[path] = None
            calls, hidden = self._found[path], args[0].detach()
            if number == 0:
                calls.append(self._shelf.call(hidden))
            call = calls[-1]
            assert len(call.arguments) == number, f"block {number} of {path!r} is called after {len(call.arguments)}"
            if number and hidden is not self._last and not torch.equal(hidden, cast(Tensor, self._last)):
                call.added[number] = hidden - cast(Tensor, self._last)
            rest = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
            call.arguments.append(_arguments(args[1:], rest, self._keep))

        return enter

    def _exit(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert isinstance(output, Tensor), f"{type(block).__name__} returns no tensor"
        self._last = output.detach()

    def _keep(self, value: Any) -> Any:
        """`value` once for all that is equal to it; a dictionary as its contents were when it was seen first."""
        if id(value) not in self._kept:
            self._kept[id(value)] = (value, self._first(value))
        return self._kept[id(value)][1]

    def _first(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return dict(value)
        value = value.detach()
        key = (value.dtype, tuple(value.shape), value.device, tensor_digest(value))
        return self._known.setdefault(key, value)


def _own_dicts(copies: dict[int, dict[Any, Any]]) -> Any:
    return lambda value: value if isinstance(value, Tensor) else copies.setdefault(id(value), dict(value))


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], of: Any) -> Arguments:
    return tuple(_map(value, of) for value in args), {name: _map(value, of) for name, value in kwargs.items()}


def _map(value: Any, of: Any) -> Any:
    """`value` with `of` of each tensor and each dictionary in it."""
    if isinstance(value, Tensor) or type(value) is dict:
        return of(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, of) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_map(item, of) for item in value)
    return value


def _without_cache(q: QModule, batch: Any, number: int) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    if given := [name for name in CACHE_NAMES if batch.get(name) is not None]:
        raise InputError(
            f"batch {number} has a KV cache ({given[0]}); blocks run one by one take whole prompts: leave it out"
        )
    able = "use_cache" in inspect.signature(q.forward).parameters or (isinstance(q, QModel) and q.can_generate())
    return {**batch, "use_cache": False} if able else batch
