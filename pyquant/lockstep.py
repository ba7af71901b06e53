# SPDX-License-Identifier: Apache-2.0
"""Several calls of a tree side by side, block after block, so that each block's weights are read once for all calls.

It owns who runs when. Each call is an ordinary call of the whole model, in a thread of its own that waits at the entry
of every block until the others are there: whatever a model does between its blocks, it does as ever. One thread runs at
a time, so a block sees the calls in their order, and what lies between two blocks too.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pyquant import autocast
from pyquant.batch import tensor_digest, tensors_in
from pyquant.observe import EmaObserver
from pyquant.stream import Stream
from pyquant.wrap import QModule, structure
from pyquant.wrap.hf_facts import CACHE_NAMES

__all__ = ["Lockstep", "obstacle"]

Item = TypeVar("Item")
Place = tuple[int, int]  # tower, block
MOST = 128  # calls side by side
_THREADS = 512  # of all calls: each may have a pool of the processor's threads of its own
_SMALL = 1 << 16  # bytes


def obstacle(q: QModule) -> str | None:
    """Why the calls of `q` are better made one after the other, in words; None where they may go side by side."""
    if not any(tower.modules for tower in structure.blocks(q)):
        return f"{type(q).__name__} declares no list of blocks"
    if ema := [site.path for site in q.all_sites() if isinstance(site.observer, EmaObserver)]:
        return f"the observer ema, as of {ema[0]!r}, depends on the order of all rows"
    return None


class Lockstep(Generic[Item]):
    """Calls of the tree `q`, as many side by side as MOST, the processor's threads and the stream's cache allow.

    Which block is next: that of the smaller tower, since its results go to the larger one; a guess that costs reads
    alone. Hidden states of waiting calls that do not fit half of `stream.cache_gb` lie in files of the stream (the
    other half is what calls keep besides: their embeddings, masks, features), equal masks and tables are kept once, and
    the KV cache that a call makes for itself is emptied behind each block, which no later one reads.
    """

    def __init__(self, q: QModule, stream: Stream) -> None:
        towers = sorted(structure.blocks(q), key=lambda tower: _size(tower.modules))
        self._places: dict[Place, QModule] = {
            (rank, number): block for rank, tower in enumerate(towers) for number, block in enumerate(tower.modules)
        }
        self._most = max(4, min(MOST, _THREADS // torch.get_num_threads()))
        self._stream = stream
        self._runs: _Call[Item] | None = None
        self._calls: list[_Call[Item]] = []
        self._stopped = False
        self._start_wave()

    @property
    def at(self) -> Item | None:
        """What runs now, or ran last."""
        return None if self._runs is None else self._runs.item

    def keep_cache(self) -> None:
        """The KV cache of the call that runs is the caller's."""
        assert self._runs is not None, "no call runs"
        self._runs.keeps_cache = True

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._places)

    def run(
        self,
        items: Iterable[Item],
        call: Callable[[Item], None],
        after: Callable[[Item, QModule | None], None],
        done: Callable[[QModule], None],
    ) -> Iterator[list[Item]]:
        """`call(item)` for each; yields the items of each wave once all of them have run.

        after: called once an item went on, with the block that it ran (None: the model before its first block). done:
        called with a block once all that waited for it have run it. Both, and `items`, in the caller's thread. An error
        of a call, of these or of `items` ends all calls of its wave, and is raised.
        """
        source = iter(items)
        with self._hooked():
            while True:
                self._start_wave()
                try:
                    for item in source:
                        one = _Call(item, call, self)
                        self._calls.append(one)
                        self._go_on(one)
                        after(item, None)
                        if len(self._calls) >= self._most or self._left <= 0:
                            break
                    if not self._calls:
                        return
                    self._run_blocks(after, done)
                    wave = [one.item for one in self._calls]
                finally:
                    self._end()
                yield wave

    def _run_blocks(self, after: Callable[[Item, QModule | None], None], done: Callable[[QModule], None]) -> None:
        while places := [one.place for one in self._calls if one.place is not None]:
            place = min(places)
            block = self._places[place]
            for one in [each for each in self._calls if each.place == place]:
                self._go_on(one)
                after(one.item, block)
            done(block)

    def _start_wave(self) -> None:
        self._stopped, self._calls = False, []
        budget = self._stream.cache_gb * 1e9 / 2
        self._left, self._hidden_left = budget, budget
        self._known: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()

    def _go_on(self, one: _Call[Item]) -> None:
        """Let it run to its next block, or its end."""
        self._runs, one.place = one, None
        one.idle.clear()
        one.go.release()
        one.idle.wait()
        if one.error is not None:
            raise one.error

    def _end(self) -> None:
        """No call is left: those that wait for a block end there, one that runs (Ctrl-C) at its next one."""
        self._stopped = True
        for one in self._calls:
            one.go.release()
        for one in self._calls:
            one.thread.join()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [
            block.register_forward_pre_hook(self._entry(place), with_kwargs=True, prepend=True)
            for place, block in self._places.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entry(self, place: Place) -> Callable[..., None]:
        def enter(block: QModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            one = self._runs
            if one is None or threading.current_thread() is not one.thread:
                return
            self._park(one, args, kwargs)
            one.place = place
            one.idle.set()
            one.go.acquire()
            if self._stopped:
                raise _Stopped

        return enter

    def _park(self, one: _Call[Item], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Put what a call waits with where it belongs. Values do not change."""
        if not one.keeps_cache:
            for name in CACHE_NAMES:
                _empty(kwargs.get(name))
        if torch.is_inference_mode_enabled():
            return  # its tensors stay as they are
        hidden = args[0] if args and isinstance(args[0], Tensor) else None
        if hidden is not None and _bytes(hidden) >= _SMALL and hidden.is_contiguous():
            self._hidden_left -= 0 if one.counted else _bytes(hidden)
            one.in_file |= self._hidden_left < 0 and not one.counted
            one.counted = True
            if one.in_file:
                hidden.data = self._stream.keep(hidden)
                self._stream.touch(hidden)
        for value in tensors_in([args[1:], dict(kwargs)]):
            if value is hidden or _bytes(value) < _SMALL or id(value) in one.seen:
                continue
            one.seen[id(value)] = value  # kept, so that its identity is its own
            mark = value.dtype, tuple(value.shape), value.stride(), tensor_digest(value)
            first = self._known.setdefault(mark, value)
            if first is value:
                self._left -= _bytes(value)
            else:
                value.data = first.data


class _Call(Generic[Item]):
    """One call: its thread, and where it waits."""

    def __init__(self, item: Item, call: Callable[[Item], None], lockstep: Lockstep[Item]) -> None:
        self.item, self.go, self.idle = item, threading.Semaphore(0), threading.Event()
        self.place: Place | None = None
        self.error: BaseException | None = None
        self.counted = self.in_file = self.keeps_cache = False
        self.seen: dict[int, Tensor] = {}
        self._call, self._lockstep, self._inference = call, lockstep, torch.is_inference_mode_enabled()
        self.thread = threading.Thread(target=self._run, name="pyquant call", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.go.acquire()
        try:
            if not self._lockstep._stopped:
                torch.get_num_threads()  # this thread takes the number that the program chose
                with torch.inference_mode(self._inference), autocast.off(), torch.no_grad():
                    self._call(self.item)
        except _Stopped:
            pass
        except BaseException as error:  # raised where the calls are made
            self.error = error
        finally:
            self.seen.clear()
            self.idle.set()


class _Stopped(BaseException):
    """Another call failed."""


def _empty(cache: Any) -> None:
    """The keys and values that blocks have put into transformers' cache go."""
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            if isinstance(value := getattr(layer, name, None), Tensor) and value.dim() == 4:
                setattr(layer, name, value[:, :, :0].clone())


def _size(modules: Iterable[QModule]) -> int:
    return sum(_bytes(value) for module in modules for value in module.parameters())


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
