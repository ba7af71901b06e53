# SPDX-License-Identifier: Apache-2.0
"""Group: the processes (ranks) that calibrate one model together, each on its own part of the data.

It owns what they say to each other: values that become one, and an error of one that all raise. It starts no process
and keeps no global state: torchrun starts them, torch.distributed has the connections. What is merged is the business
of the rooms that take a group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

from pyquant.errors import InputError, PyquantError, RankError

__all__ = ["Group", "Link", "LinkError", "guarded"]

Value = TypeVar("Value")
Failure = tuple[int, str, bool]  # the rank, what it has to say, and whether it is gone
PATIENCE = timedelta(hours=2)


class LinkError(Exception):
    """The other process is gone, or silent for too long."""


class Link(Protocol):
    """How one rank talks to another. Messages between two ranks arrive in their order."""

    def send(self, value: Any, rank: int) -> None:
        """Raises LinkError."""

    def receive(self, rank: int) -> Any:
        """The next message of `rank`, once it is there. Raises LinkError."""


class Group:
    """Ranks 0 to size - 1. All of them call the same methods in the same order, with the same names.

    Rank 0 collects and answers, so sums have one order (that of the ranks), and whoever is missing is known by its
    number. A group of one process does nothing. Whatever goes wrong on one rank is a RankError on all of them, at the
    latest when the others reach the next exchange.
    """

    def __init__(self, rank: int, size: int, link: Link) -> None:
        if not 0 <= rank < size:
            raise InputError(f"a group has ranks 0 to size - 1, got {rank = }, {size = }")
        self.rank, self.size, self._link = rank, size, link
        self._guarded = False
        self._broken: RankError | None = None

    @classmethod
    def of_torch(cls, patience: timedelta = PATIENCE) -> Group:
        """The group of torch.distributed's default process group, whatever its backend; all its ranks call this.

        What ranks exchange (ranges, histograms, second moments) goes through a gloo group of its own, from host memory:
        the same bits for every kind of device. patience: how long one rank may be behind another.

        Raises InputError where torch.distributed is not initialized.
        """
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                "there is no process group; start the program by torchrun and call "
                "torch.distributed.init_process_group first"
            )
        return cls(dist.get_rank(), dist.get_world_size(), _TorchLink(patience))

    @classmethod
    def of_torchrun(cls, patience: timedelta = PATIENCE) -> Group | None:
        """The group that torchrun started this process in, which is made here; None for a process that it did not
        start, or that is alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            return None
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls.of_torch(patience)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def fold(self, name: str, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """`combine(combine(value of rank 0, of rank 1), of rank 2)` and so on, computed on rank 0: the same on all.

        `name` says what it is, in words for a user. Raises RankError.
        """
        if self.size == 1:
            return value
        if self._broken is not None:
            raise self._broken
        return cast(Value, self._hub(name, value, combine, None) if self.first else self._ask(name, value, None))

    def gather(self, name: str, value: Value) -> list[Value]:
        """The value of each rank, in their order. Raises RankError."""
        return self.fold(name, [value], lambda some, more: some + more)

    def same(self, name: str, value: object) -> None:
        """Raise RankError unless all ranks have an equal value."""
        found = self.gather(name, value)
        for rank, other in enumerate(found):
            if other != found[0]:
                self._fail(rank, f"{name} differs from that of rank 0; give every rank the same model, recipe and "
                                 "versions, and processors of one kind")  # fmt: skip

    def counts(self, name: str, count: int) -> list[int]:
        """How many batches each rank has. Raises RankError for one that has none."""
        found = self.gather(name, count)
        for rank, number in enumerate(found):
            if number == 0:
                self._fail(rank, f"{name}: it has no data ({', '.join(map(str, found))} batches on ranks 0 to "
                                 f"{self.size - 1}); start fewer processes, or give each some")  # fmt: skip
        return found

    @contextmanager
    def guard(self) -> Iterator[None]:
        """An error in the block reaches every rank: it is a RankError on all, this one too, caused by the error.

        The others learn of it at their next exchange. A guard within another does nothing. KeyboardInterrupt and
        SystemExit pass: that this process ended is an error on the others.
        """
        if self._guarded or self.size == 1:
            yield
            return
        self._guarded = True
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            self._announce(_words(error), error)
        finally:
            self._guarded = False

    def wait_for_end(self) -> None:
        """Let rank 0 end first, so that its last words are printed before a launcher ends all that are left."""
        if not self.first:
            with suppress(LinkError):
                self._link.receive(0)

    def _announce(self, text: str, error: Exception) -> None:
        """Instead of the value of the next exchange, the others get this error."""
        if self._broken is not None:
            raise self._broken from error
        try:
            if self.first:
                self._hub("", None, lambda some, more: some, (0, text, False))
            else:
                self._ask("", None, (self.rank, text, False))
        except RankError as failed:
            raise failed from error
        raise AssertionError("an announced error comes back")

    def _hub(
        self, name: str, value: Any, combine: Callable[[Any, Any], Any], failure: Failure | None
    ) -> Any:  # of rank 0
        for rank in range(1, self.size):
            try:
                theirs, problem, given = self._link.receive(rank)
            except LinkError as error:
                failure = failure or (rank, _gone(error), True)
                continue
            if failure is None and problem is None and theirs != name:
                problem = rank, f"it is at {theirs!r}, rank 0 at {name!r}; every rank must make the same calls", False
            failure = failure or problem
            if failure is None:
                try:
                    value = combine(value, given)
                except Exception as error:
                    failure = 0, f"{name}: {_words(error)}", False
        for rank in range(1, self.size):
            with suppress(LinkError):  # who is gone is found at the next exchange
                self._link.send((failure, value if failure is None else None), rank)
        if failure is not None:
            self._fail(*failure)
        return value

    def _ask(self, name: str, value: Any, failure: Failure | None) -> Any:
        try:
            self._link.send((name, failure, value), 0)
            answer, value = self._link.receive(0)
        except LinkError as error:
            self._fail(0, _gone(error), True)
        if answer is not None:
            self._fail(*answer)
        return value

    def _fail(self, rank: int, text: str, gone: bool = False) -> None:
        self._broken = RankError(rank, text, gone=gone)
        raise self._broken


def guarded(group: Group | None) -> AbstractContextManager[None]:
    """The guard of a group, where there is one."""
    return nullcontext() if group is None else group.guard()


def _gone(error: LinkError) -> str:
    return f"it ended without a word ({error}); was it killed, or out of memory?"


def _words(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, PyquantError) else f"{type(error).__name__}{': ' if text else ''}{text}"


class _TorchLink:
    """Pickled messages by torch.distributed."""

    def __init__(self, patience: timedelta) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, dist.new_group(backend="gloo", timeout=patience)

    def send(self, value: Any, rank: int) -> None:
        try:
            self._dist.send_object_list([value], dst=rank, group=self._group)
        except RuntimeError as error:
            raise LinkError(str(error).partition("\n")[0]) from error

    def receive(self, rank: int) -> Any:
        found: list[Any] = [None]
        try:
            self._dist.recv_object_list(found, src=rank, group=self._group)
        except RuntimeError as error:
            raise LinkError(str(error).partition("\n")[0]) from error
        return found[0]
