# SPDX-License-Identifier: Apache-2.0
"""What calibrate saw so far, in a folder, from which a run that was killed goes on with the same bits.

It owns the file of statistics. The folder and the check that it is of the same run are algorithms/block_files.py, which
state of a tree is statistics is tree_statistics.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyquant import files, tensor_file
from pyquant.algorithms.block_files import RunFolder, digest, fingerprint
from pyquant.errors import CheckpointError
from pyquant.tree_statistics import running
from pyquant.wrap import QModule

__all__ = ["Progress"]

FILE = "calibration.safetensors"
EVERY = 20.0  # seconds of calibration between two files


class Progress:
    """Statistics of `q` after the first `done` batches of a run that the folder `path` is of.

    Raises CheckpointError for a folder of another run (model, data, earlier statistics, versions), and a damaged file.
    """

    def __init__(self, q: QModule, batches: Iterable[Any], path: Path) -> None:
        self._q, self._file = q, path / FILE
        settings = {"verb": "calibrate", "seen": digest(_tensors(q))}
        RunFolder.of(path, fingerprint(q, batches, settings))
        self.done = self._load() if self._file.exists() else 0
        self._saved = time.monotonic()

    def after(self, done: int, *, last: bool = False) -> None:
        """`done` batches were seen: write that, once in a while."""
        if done <= self.done or (time.monotonic() - self._saved < EVERY and not last):
            return
        tensors = _tensors(self._q)
        sites = {s.path: [s.observer.batches, s.apart] for s in running(self._q) if s.observer and s.observer.batches}
        about = {"done": str(done), "sites": json.dumps(sites), "digest": digest(tensors)}
        with files.whole_file(self._file) as new:
            tensor_file.save(new, {name: tensor_file.whole(value) for name, value in tensors.items()}, about)
        self.done, self._saved = done, time.monotonic()

    def _load(self) -> int:
        try:
            with safe_open(self._file, "pt") as opened:
                about = opened.metadata()
                tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
            if about["digest"] != digest(tensors):
                raise CheckpointError("its tensors are not those that were written")
            done, sites = int(about["done"]), json.loads(about["sites"])
            known = {site.path: site for site in running(self._q)}
            found = [(known[path], batches, apart) for path, (batches, apart) in sites.items()]
            for site, batches, apart in found:
                assert site.observer is not None
                device = site.observer.count.device
                for name in site.observer.STATE:
                    setattr(site.observer, name, tensors[f"{site.path}/{name}"].to(device))
                site.observer.batches, site.apart, site.last_seen = int(batches), bool(apart), site.last_seen or 1
            for module in self._q.all_qmodules():
                for name in module.COUNTS:
                    old = getattr(module, name)
                    setattr(module, name, tensors[f"{module.path}#{name}"].to(old.device))
        except (CheckpointError, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(self._file)!r} cannot be used ({error}); remove this file to calibrate from the first batch"
            ) from error
        return done


def _tensors(q: QModule) -> dict[str, Tensor]:
    """The statistics by name: those of a site that saw nothing are left out."""
    found: dict[str, Tensor] = {}
    for site in running(q):
        if site.observer is not None and site.observer.batches:
            found |= {f"{site.path}/{name}": getattr(site.observer, name) for name in site.observer.STATE}
    for module in q.all_qmodules():
        found |= {f"{module.path}#{name}": getattr(module, name) for name in module.COUNTS}
    return found
