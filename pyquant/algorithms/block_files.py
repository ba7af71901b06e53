# SPDX-License-Identifier: Apache-2.0
"""A folder with a file for each block whose weights are decided, from which a run that was killed goes on.

It owns the files and the check that they are of the same run: model, data, settings, versions. Deciding is blocks.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyquant import files, tensor_file
from pyquant.batch import is_batch, tensor_digest
from pyquant.decision import Decision
from pyquant.errors import CheckpointError, InputError
from pyquant.qparams import QParams
from pyquant.spec import QuantSpec
from pyquant.weight import Weight, weights
from pyquant.wrap import QModule

__all__ = ["RunFolder", "digest", "fingerprint"]

RUN = "run.json"


def fingerprint(q: QModule, batches: Iterable[Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """What decides the result of a run, each as a checksum or in words: model, data, settings, versions."""
    model = hashlib.blake2b(digest_size=16)
    for name, tensor in [*q.named_parameters(), *q.named_buffers()]:
        if q.state.stream is not None:
            q.state.stream.touch(tensor)
        model.update(name.encode() + tensor_digest(tensor))
    for weight in weights(q):
        model.update(f"{weight.path} {weight.spec} {weight.how}".encode())
    data = hashlib.blake2b(digest_size=16)
    for batch in batches:
        assert is_batch(batch), f"{type(batch).__name__} is no batch"
        _add(data, batch)
    return {
        "model": model.hexdigest(),
        "data": data.hexdigest(),
        "settings": json.dumps(settings, sort_keys=True),
        "versions": f"pyquant {_version('pyquant-circle')}, torch {torch.__version__}, "
        f"transformers {_version('transformers')}",
    }


@dataclass(frozen=True)
class RunFolder:
    """The folder `path` of one run, which exists."""

    path: Path

    @classmethod
    def of(cls, path: Path, marks: Mapping[str, str]) -> RunFolder:
        """A new folder, or that of a run with the same fingerprint `marks`. Raises CheckpointError for another run's,
        OSError for one that cannot be made."""
        path.mkdir(parents=True, exist_ok=True)
        run = path / RUN
        if not run.exists():
            if other := next(path.glob("*.safetensors"), None):
                raise CheckpointError(
                    f"the folder {str(path)!r} has {other.name} and no {RUN}: it is not of a run of pyquant; name a "
                    "new or empty folder"
                )
            files.whole_text(run, json.dumps(dict(marks), indent=1) + "\n")
            return cls(path)
        try:
            earlier = json.loads(run.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{str(run)!r} cannot be read ({error}); remove the folder and start anew") from error
        differs = [name for name, mark in marks.items() if not isinstance(earlier, dict) or earlier.get(name) != mark]
        if differs:
            seen = "; ".join(
                f"{name} was {earlier.get(name)}, is {marks[name]}" if isinstance(earlier, dict) else name
                for name in differs
            )
            raise CheckpointError(
                f"the folder {str(path)!r} is of a run with another {', '.join(differs)} ({seen}); name another "
                "folder, or remove this one to start anew"
            )
        return cls(path)

    def has(self, number: int) -> bool:
        """Whether block `number` is decided."""
        return self._file(number).exists()

    def save(self, number: int, path: str, decided: Sequence[Weight], log: Sequence[Decision]) -> None:
        """The decided weights of block `number`, whose module is at `path`, and what was recorded of them.

        Raises InputError for one that a solver decided as ggml's blocks, which have no grid.
        """
        tensors: dict[str, Tensor] = {}
        specs: list[QuantSpec] = []
        for weight in decided:
            grid = weight.qparams
            if grid is None:
                raise InputError(
                    f"weight {weight.path!r} is decided as blocks ({weight.how}), which the file of a finished block "
                    "does not hold; leave it out by choose=, or run without resume="
                )
            specs.append(grid.spec)
            tensors[f"{weight.path}/integers"] = weight.integers
            tensors[f"{weight.path}/scale"], tensors[f"{weight.path}/zero_point"] = grid.scale, grid.zero_point
        about = {
            "path": path,
            "weights": json.dumps(
                [[w.path, spec.to_dict(), w.how, w.site.final] for w, spec in zip(decided, specs, strict=True)]
            ),
            "log": json.dumps([asdict(entry) for entry in log]),
            "digest": digest(tensors),
        }
        with files.whole_file(self._file(number)) as new:
            tensor_file.save(new, {name: tensor_file.whole(value) for name, value in tensors.items()}, about)

    def load(self, number: int, path: str, open_weights: Mapping[str, Weight]) -> list[Decision] | None:
        """Decide the weights of block `number` as its file says -> what was recorded of them; None without a file.

        open_weights: the block's by their paths. Raises CheckpointError for a damaged file.
        """
        file = self._file(number)
        if not file.exists():
            return None
        try:
            with safe_open(file, "pt") as opened:
                about = opened.metadata()
                listed = json.loads(about["weights"])
                if about["path"] != path or [each[0] for each in listed if each[0] not in open_weights]:
                    raise CheckpointError(f"it is of {about['path']!r}, expected {path!r}")
                if about["digest"] != digest({key: opened.get_tensor(key) for key in opened.keys()}):  # noqa: SIM118
                    raise CheckpointError("its tensors are not those that were written")
                log = [Decision(**entry) for entry in json.loads(about["log"])]
                chosen = []
                for name, spec, how, final in listed:
                    weight = open_weights[name]
                    parts = (opened.get_tensor(f"{name}/{part}") for part in ("scale", "zero_point", "integers"))
                    scale, zero_point, integers = (part.to(weight.value.device) for part in parts)
                    chosen.append((weight, QParams(QuantSpec.from_dict(spec), scale, zero_point), how, integers, final))
            for weight, grid, how, integers, final in chosen:
                weight.decide(grid, how, integers, final=final)
            return log
        except (CheckpointError, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(file)!r} cannot be used ({error}); remove this file to decide its block again"
            ) from error

    def _file(self, number: int) -> Path:
        return self.path / f"block_{number:03d}.safetensors"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of named tensors."""
    digest = hashlib.sha256()
    _add(digest, dict(tensors))
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + tensor_digest(value))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(f"{name}=".encode())
            _add(digest, value[name])
    elif isinstance(value, tuple | list):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
