# SPDX-License-Identifier: Apache-2.0
"""CalibrationData: batches that are read when they are needed, with a length for the progress bar.

It owns choosing the reader by the file's name, picking some samples, and errors that say which one failed.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import overload

from torch import Tensor

from pyquant.calibration.lines import read_lines
from pyquant.calibration.load import load_reader
from pyquant.calibration.processor import Reader
from pyquant.calibration.tensors import SUFFIXES, Sample, read_tensors
from pyquant.errors import CalibrationError, PyquantError

Batch = dict[str, Tensor]


class CalibrationData(Sequence[Batch]):
    """Batches for `pyquant.calibrate`: each is read on every access, and none is kept in memory."""

    def __init__(self, samples: Sequence[Sample], steps: tuple[Callable[[Batch], Batch], ...] = ()) -> None:
        self._samples, self._steps = tuple(samples), steps

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> CalibrationData: ...
    def __getitem__(self, index: int | slice) -> Batch | CalibrationData:
        if isinstance(index, slice):
            return CalibrationData(self._samples[index], self._steps)
        sample = self._samples[index]
        batch = sample.load()
        try:
            for step in self._steps:
                batch = step(batch)
        except PyquantError as error:
            raise CalibrationError(f"{sample.where}: {error}") from error
        return batch

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """`calib.jsonl, line 3`: the place of a batch in its file."""
        return self._samples[index].where

    def map(self, step: Callable[[Batch], Batch]) -> CalibrationData:
        """The same samples, with `step` applied to each when it is read; its PyquantErrors name the sample."""
        return CalibrationData(self._samples, (*self._steps, step))

    def sample(self, count: int, seed: int = 0) -> CalibrationData:
        """`count` of the samples, the same ones for the same seed, in the order of the file; all of them if there are
        fewer.

        Raises CalibrationError for a count below 1.
        """
        if count < 1:
            raise CalibrationError(f"calibration needs at least one sample, got {count}")
        if count >= len(self):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self)), count))
        return CalibrationData([self._samples[index] for index in chosen], self._steps)


def read(path: str | os.PathLike[str], reader: Reader | str | os.PathLike[str] | None = None) -> CalibrationData:
    """Calibration data by the name of its file.

    .jsonl: lines {"image": file(s), "prompt": text}, see `read_lines`; `reader` is the checkpoint folder whose
    processor reads them, or the result of `load_reader`. .safetensors, .pt: batches, see `tensors.read_tensors`. A
    folder: the .safetensors and .pt files in it, ordered by name. Raises CalibrationError.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise CalibrationError(
                f"the folder {str(path)!r} has no {' or '.join(SUFFIXES[:2])} file; name the .jsonl of lines itself"
            )
        return CalibrationData([sample for file in files for sample in read_tensors(file)])
    if path.suffix in SUFFIXES:
        return CalibrationData(read_tensors(path))
    if path.suffix != ".jsonl":
        raise CalibrationError(
            f"calibration data {str(path)!r}: the name ends in .jsonl (lines of image and prompt), .safetensors or "
            f".pt (batches of tensors), or is a folder of such batches"
        )
    lines = read_lines(path)
    if reader is None:
        raise CalibrationError(
            f"the lines of {str(path)!r} are read by the processor of a checkpoint: read(path, folder)"
        )
    if not isinstance(reader, Reader):
        reader = load_reader(reader)
    return CalibrationData([Sample(line.where, partial(reader.read, line)) for line in lines])


def forward_arguments(cls: type) -> tuple[str, ...]:
    """The names that the forward of a module class takes, without `*args` and `**kwargs`."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))


def only(names: Sequence[str], given: str, batch: Batch, *, drop: bool) -> Batch:
    """The entries of `batch` that a model's forward takes (`names`).

    A processor may return more than a model takes (`drop`); in a file of batches other entries are an error.
    """
    rest = sorted(set(batch) - set(names))
    if rest and not drop:
        raise CalibrationError(
            f"the batch has {', '.join(rest)}, which {given} does not take; it takes {', '.join(names)}"
        )
    kept = {name: value for name, value in batch.items() if name in names}
    if not kept:
        raise CalibrationError(f"the batch has {', '.join(batch)}, of which {given} takes nothing")
    return kept
