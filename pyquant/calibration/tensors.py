# SPDX-License-Identifier: Apache-2.0
"""Batches that were made elsewhere: .safetensors and .pt files, read one batch at a time.

It owns their layout. Whether a model takes them is checked by data.py and the model.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyquant import files
from pyquant.errors import CalibrationError

SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Sample:
    """One batch that is not read yet: its place in the file, and how to read its keyword arguments."""

    where: str
    load: Callable[[], dict[str, Tensor]]


def read_tensors(path: Path) -> list[Sample]:
    """The batches of one file.

    .safetensors: names are those of the model's arguments (`input_ids`: the file is one batch) or have a number before
    a dot (`0.input_ids`, `1.input_ids`: several, in the order of their numbers). .pt: one dict of tensors, or a list
    of them, loaded without executing any code. Raises CalibrationError for anything else.
    """
    if why := files.absent(path):
        raise CalibrationError(f"calibration data {str(path)!r} {why}")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _safetensors(path: Path) -> list[Sample]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"calibration data {str(path)!r} cannot be read: {error}") from error
    batches: dict[int | None, dict[str, str]] = {}
    for name in names:
        head, dot, tail = name.partition(".")
        number = int(head) if dot and head.isdecimal() and tail else None
        key = name if number is None else tail
        if key in batches.setdefault(number, {}):
            raise CalibrationError(f"{path}: {name!r} and {batches[number][key]!r} are the same argument of one batch")
        batches[number][key] = name
    if not batches:
        raise CalibrationError(f"calibration data {str(path)!r} has no tensor")
    if None in batches and len(batches) > 1:
        raise CalibrationError(
            f"{path}: {next(iter(batches[None].values()))!r} has no number, other tensors do; several batches are "
            f"named 0.input_ids, 1.input_ids, ..., one batch has no numbers at all"
        )
    return [
        Sample(str(path) if number is None else f"{path}, batch {number}", partial(_get, path, batches[number]))
        for number in sorted(batches, key=lambda n: n or 0)
    ]


def _get(path: Path, names: dict[str, str]) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(name) for key, name in names.items()}


def _pickled(path: Path) -> list[Sample]:
    batches = _load(path)
    places = [str(path)] if len(batches) == 1 else [f"{path}, batch {number}" for number in range(len(batches))]
    return [Sample(where, partial(dict, batch)) for where, batch in zip(places, batches, strict=True)]


def _load(path: Path) -> list[dict[str, Tensor]]:
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().split("\n")[0]
        raise CalibrationError(
            f"calibration data {str(path)!r} cannot be read ({type(error).__name__}: {first}); it is a dict of "
            f"tensors or a list of them, written by torch.save, with no other objects in it"
        ) from error
    batches = data if isinstance(data, list | tuple) else [data]
    for number, batch in enumerate(batches):
        bad = not isinstance(batch, dict) or not batch
        if bad or any(not isinstance(k, str) or not isinstance(v, Tensor) for k, v in batch.items()):
            raise CalibrationError(
                f"{path}, batch {number}: a batch is a dict of argument name -> tensor, got "
                + (f"a {type(batch).__name__}" if bad else f"{ {k: type(v).__name__ for k, v in batch.items()} }")
            )
    if not batches:
        raise CalibrationError(f"calibration data {str(path)!r} has no batch")
    return list(batches)
