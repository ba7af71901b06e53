# SPDX-License-Identifier: Apache-2.0
"""Which samples a model was calibrated on, as checksums: a later evaluation can see that it measures on the same data.

It owns what of a sample is hashed, and the file `calibration.json`. No text or image can be read out of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyquant import files
from pyquant.errors import CalibrationError

FILE = "calibration.json"
FORMAT, VERSION = "pyquant-calibration", 1
RUN = 16  # tokens of a run of text
_KEPT = 8  # one run in so many is kept (those whose hash is 0 modulo it: Manber, Finding Similar Files, 1994)
_BITS = 48
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MEDIA = ("pixel_values", "input_features")  # beginnings of the names of images, videos and clips
_DERIVED = ("attention_mask", "mm_token_type_ids", "position_ids", "token_type_ids")

Runs = frozenset[int]


@dataclass(frozen=True)
class Print:
    """One sample: the checksum of its tokens and media, those of its media, and hashes of runs of RUN tokens (of text
    alone: where there is an image, a template and its placeholders would look like common text)."""

    digest: str
    media: tuple[str, ...]
    runs: Runs


@dataclass(frozen=True)
class Fingerprint:
    """Checksums of samples, of media, and hashes of runs of tokens, of all samples together."""

    digests: frozenset[str]
    media: frozenset[str]
    runs: Runs

    @classmethod
    def of(cls, prints: Iterable[Print]) -> Fingerprint:
        """Of all samples. Runs that more than half of four or more samples have (a chat template) are left out."""
        samples = list(prints)
        counts = Counter(run for sample in samples for run in sample.runs)
        most = len(samples) / 2 if len(samples) >= 4 else len(samples)
        return cls(
            frozenset(sample.digest for sample in samples),
            frozenset(digest for sample in samples for digest in sample.media),
            frozenset(run for run, count in counts.items() if count <= most),
        )

    def __or__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.digests | other.digests, self.media | other.media, self.runs | other.runs)

    def save(self, folder: Path) -> None:
        """Write `calibration.json` into a folder."""
        width = _BITS // 4
        data = {
            "format": FORMAT,
            "version": VERSION,
            "run_tokens": RUN,
            "samples": sorted(self.digests),
            "media": sorted(self.media),
            "runs": "".join(f"{run:0{width}x}" for run in sorted(self.runs)),
        }
        files.whole_text(folder / FILE, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Fingerprint | None:
        """That of a folder; None where it has none. Raises CalibrationError for a file of another form."""
        path, width = folder / FILE, _BITS // 4
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if (data["format"], data["version"], data["run_tokens"]) != (FORMAT, VERSION, RUN):
                raise ValueError(f"it is {data['format']} {data['version']}")
            text = data["runs"]
            runs = frozenset(int(text[at : at + width], 16) for at in range(0, len(text), width))
            return cls(frozenset(data["samples"]), frozenset(data["media"]), runs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(
                f"{str(path)!r} is no record of calibration data that this pyquant reads ({error}); remove it, or "
                f"quantize again"
            ) from error


def prints(batch: Mapping[str, Tensor]) -> Iterator[Print]:
    """One for each row of `input_ids` of a batch (those that attention_mask leaves); one for a batch without."""
    media = tuple(_digest({name: batch[name]}) for name in sorted(batch) if name.startswith(_MEDIA))
    ids = batch.get("input_ids")
    if ids is None:
        yield Print(_digest({n: v for n, v in batch.items() if n not in _DERIVED}), media, frozenset())
        return
    mask = batch.get("attention_mask")
    whole = mask is None or mask.shape != ids.shape
    for row, tokens in enumerate(ids):
        kept = tokens if whole or mask is None else tokens[mask[row] != 0]
        digest = hashlib.sha256("/".join([_digest({"input_ids": kept}), *media]).encode()).hexdigest()[: _BITS // 2]
        yield Print(digest, media, frozenset() if media else _runs(kept))


def fingerprint(batches: Iterable[Mapping[str, Tensor]]) -> Fingerprint:
    """Of batches of a model's keyword arguments: `fingerprint(batches).save(folder)` beside a saved model."""
    return Fingerprint.of(each for batch in batches for each in prints(batch))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of values: integers as int64, others as float32, by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        value = value.float() if value.is_floating_point() else value.to(torch.int64)
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[: _BITS // 2]


def _runs(ids: Tensor) -> Runs:
    """Hashes of every RUN tokens in a row, of which one in _KEPT is kept: by the hash, so that the same runs are kept
    wherever they stand."""
    tokens: Any = ids.detach().cpu().numpy().astype(np.uint64)
    if len(tokens) < RUN:
        return frozenset()
    powers = np.array([pow(int(_FACTOR), k, 2**64) for k in range(1, RUN + 1)], dtype=np.uint64)
    hashes = (np.lib.stride_tricks.sliding_window_view(tokens + np.uint64(1), RUN) * powers).sum(axis=1)
    for shift in (np.uint64(30), np.uint64(27)):  # spreads the low bits, which choose
        hashes = (hashes ^ (hashes >> shift)) * np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(31)
    kept = hashes[hashes % np.uint64(_KEPT) == 0]
    return frozenset(int(value) for value in kept & np.uint64(2**_BITS - 1))
