# SPDX-License-Identifier: Apache-2.0
"""The weights files of a checkpoint folder before and after transformers reads them: what is missing, cut off or
contradicts config.json.

It owns these checks and their words. Which class is built is checkpoints.py.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant import files
from pyquant.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

# in the order in which transformers looks for them; the first that is there is the one that it reads
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_WORDS = (".weight_packed", ".qweight")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_files(folder: Path) -> None:
    """Raise ModelError for a weights file of a local folder that is absent, a Git LFS pointer, empty or cut off."""
    if folder.is_dir():
        for file in _files(folder):
            _check(file)


def elements(folder: Path) -> int:
    """How many numbers the .safetensors files of a local folder hold; 0 for another kind of files, or none."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in _files(folder) if folder.is_dir() else ():
        if file.suffix != ".safetensors":
            return 0
        try:
            with safe_open(file, framework="pt") as content:
                total += sum(_count(content, key) for key in content.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0  # check_files has the error
    return total


def _count(content: Any, key: str) -> int:
    """The numbers of a tensor; of 32-bit words of integers (reader.py), those that 4 bits each would be."""
    shape: list[int] = content.get_slice(key).get_shape()
    return math.prod(shape) * (8 if key.endswith(_WORDS) else 1)


def _files(folder: Path) -> Iterable[Path]:
    """The files that hold the weights; all shards of an index."""
    for whole, index in zip(_WHOLE, _INDEX, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder / index)
    return sorted(folder.glob("*.gguf"))  # nothing that is read here; a pointer among them explains what is missing


def _shards(index: Path) -> list[Path]:
    if why := files.absent(index):
        raise ModelError(f"{str(index)!r} {why}")
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{str(index)!r} is no index of weights ({type(error).__name__}: {error}); download it again"
        ) from error
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise ModelError(
            f"{str(index.parent)!r} lacks {len(absent)} of the {len(names)} weights files that {index.name} names, the "
            f"first is {absent[0]!r}; download them (`git lfs pull` in a clone, or `hf download`)"
        )
    return [index.parent / name for name in names]


def _check(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if why := files.absent(file):
        raise ModelError(f"the weights file {str(file)!r} {why}")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return
        with file.open("rb") as start:
            is_zip = start.read(2) == b"PK"
        if is_zip and not zipfile.is_zipfile(file):
            raise ModelError(
                f"the weights file {str(file)!r} is cut off ({file.stat().st_size} bytes); download it again"
            )
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the weights file {str(file)!r} is cut off or damaged ({file.stat().st_size} bytes; {error}); download it "
            f"again (`git lfs pull` in a clone, or `hf download`)"
        ) from error


def check_ties(name: str, model: nn.Module, missing: Sequence[str]) -> None:
    """Raise ModelError where config.json's tie_word_embeddings contradicts the tensors of the checkpoint.

    `missing`: what the weights files did not have.
    """
    any_model: Any = model
    table = _weight_of(any_model, "get_input_embeddings")
    head = _weight_of(any_model, "get_output_embeddings")
    if table is None or head is None:
        return
    every = model.named_parameters(remove_duplicate=False)
    key = next((key for key, value in every if value is head), "lm_head.weight")
    if not bool(getattr(any_model.config, "tie_word_embeddings", False)):
        if key in missing and head.shape == table.shape:
            raise ModelError(
                f"{name!r}: config.json has tie_word_embeddings=false, but the weights have no {key!r}; set it to true "
                f"in config.json if the head is the embedding table, else use a complete checkpoint"
            )
        return
    stored = _stored(Path(name), ("lm_head.weight", "embed_tokens.weight"))
    if len(stored) == 2 and (stored[0].shape != stored[1].shape or not bool((stored[0] == stored[1]).all())):
        raise ModelError(
            f"{name!r}: config.json has tie_word_embeddings=true, but the weights have an 'lm_head.weight' that "
            f"differs from the embedding table; set tie_word_embeddings to false in config.json if the head is a "
            f"tensor of its own, else remove it from the weights"
        )


def _weight_of(model: Any, getter: str) -> Tensor | None:
    try:
        weight: Tensor | None = getattr(getattr(model, getter)(), "weight", None)
    except (AttributeError, NotImplementedError):  # a model without text
        return None
    return weight


def _stored(folder: Path, endings: Sequence[str]) -> list[Tensor]:
    """The one tensor of the language model for each ending, as the folder's .safetensors hold it; [] otherwise."""
    from safetensors import safe_open

    found: dict[str, list[Tensor]] = {ending: [] for ending in endings}
    for file in _files(folder) if folder.is_dir() else ():
        if file.suffix != ".safetensors":
            return []
        with safe_open(file, framework="pt") as content:
            for key in content.keys():  # noqa: SIM118
                for ending in endings:
                    if key == ending or key.endswith("." + ending):
                        found[ending].append(content.get_tensor(key))
    return [tensors[0] for tensors in found.values() if len(tensors) == 1]
