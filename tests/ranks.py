# SPDX-License-Identifier: Apache-2.0
"""Groups for tests: ranks as threads with queues between them (fast), and as processes under torchrun."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyquant.distributed import Group, LinkError


class Wires:
    """A queue for each pair of ranks; messages are pickled, so that nothing is shared."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queues = {(a, b): queue.Queue() for a in range(size) for b in range(size)}

    def end(self, rank: int) -> None:
        """The rank is gone: who waits for it learns of it."""
        for other in range(self.size):
            self.queues[rank, other].put(None)


@dataclass
class QueueLink:
    wires: Wires
    rank: int
    sent: list[int] = field(default_factory=list)  # bytes of each message

    def send(self, value: Any, rank: int) -> None:
        data = pickle.dumps(value)
        self.sent.append(len(data))
        self.wires.queues[self.rank, rank].put(data)

    def receive(self, rank: int) -> Any:
        data = self.wires.queues[rank, self.rank].get(timeout=120)
        if data is None:
            raise LinkError("its queue is closed")
        return pickle.loads(data)


def run_ranks(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` returns on each rank, or the exception that it raises there. SystemExit is a rank that just ends."""
    wires = Wires(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Group(rank, size, QueueLink(wires, rank)))
        except BaseException as error:
            results[rank] = error
        finally:
            wires.end(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive(), "a rank hangs"
    return results


def torchrun(size: int, words: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
    """torchrun --nproc-per-node SIZE WORDS."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *words]
    own = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(program, env=own, capture_output=True, text=True, timeout=600, check=False)
