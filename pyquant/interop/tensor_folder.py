# SPDX-License-Identifier: Apache-2.0
"""TensorFolder: the tensors of a checkpoint folder's .safetensors files, by name, each read when it is asked for.

It owns opening these files. What the tensors mean is the format's file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyquant.errors import ModelError

__all__ = ["TensorFolder", "safetensors_files"]

_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"


class TensorFolder(Mapping[str, Tensor]):
    """name -> tensor, which lies in its mapped file until somebody computes with it.

    Raises ModelError for a folder without .safetensors files, or with one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file_of: dict[str, Any] = {}
        for file in safetensors_files(self.path):
            try:
                content: Any = safe_open(file, framework="pt")
                self._file_of |= dict.fromkeys(list(content.keys()), content)
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"the weights file {str(file)!r} cannot be read ({error}); download it again"
                ) from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        """From the file's header."""
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors calls it (I8, I32, BF16, F8_E4M3, ...), from the file's header."""
        return str(self._file_of[name].get_slice(name).get_dtype())

    def require(self, name: str, why: str) -> Tensor:
        """The tensor `name`. Raises ModelError that says who needs it."""
        if name not in self._file_of:
            raise ModelError(f"{str(self.path)!r} has no tensor {name!r}, which {why}; download the checkpoint again")
        return self[name]

    def number(self, name: str) -> Tensor:
        """A tensor of one element as rank 0. Raises ModelError for another shape."""
        value = self[name]
        if value.numel() != 1:
            raise ModelError(
                f"{name!r} in {str(self.path)!r} has shape {tuple(value.shape)}, expected one number: an activation "
                "has one scale and zero point in a Circle file; quantize it with the strategy `tensor`"
            )
        return value.reshape(()).to(torch.float32 if value.is_floating_point() else torch.int32)


def safetensors_files(folder: Path) -> list[Path]:
    """The weights files of `folder`: one, or the shards that its index names. Raises ModelError."""
    index = folder / _INDEX
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if not index.is_file():
        raise ModelError(
            f"checkpoint={str(folder)!r} has neither {_WHOLE} nor {_INDEX}; give the folder that the model was "
            "loaded from"
        )
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{str(index)!r} is no index of weights ({error}); download it again") from error
    return [folder / name for name in names]
