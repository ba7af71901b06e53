# SPDX-License-Identifier: Apache-2.0
"""Reader: what every format of another tool's checkpoints is asked for; and a file for a format that finds it.

It owns the interface and the choice. Each format is one file beside this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pyquant.errors import ModelError
from pyquant.interop.stored_weight import StoredWeight
from pyquant.interop.tensor_folder import TensorFolder
from pyquant.qparams import QParams
from pyquant.wrap import foreign

__all__ = ["METHODS", "Advice", "Reader", "quantization_config", "reader_of", "require_read"]

#: the quant_method of each format that is read
METHODS = ("compressed-tensors", "gptq", "auto-round")


@dataclass(frozen=True)
class Advice:
    """What a user of a tool can do. per_channel: how it writes one scale per channel. symmetric: how without zero
    points."""

    per_channel: str
    symmetric: str


class Reader(Protocol):
    """The quantized modules of one folder. Paths are those of the checkpoint."""

    @property
    def tool(self) -> str:
        """The tool, as a user knows it."""
        ...

    @property
    def advice(self) -> Advice: ...

    @property
    def folder(self) -> TensorFolder: ...

    @property
    def weights(self) -> frozenset[str]:
        """Paths of the modules whose weight is stored as integers."""
        ...

    @property
    def owned(self) -> frozenset[str]:
        """Tensors of the folder that say how a module is quantized: they are no parameters of the float model."""
        ...

    def weight(self, path: str) -> StoredWeight:
        """The integers of a module. Raises ModelError for what is missing, of another shape or not read."""
        ...

    def activations(self) -> Mapping[str, QParams]:
        """`path:input`, `path:output`, `path:key` and `path:value` -> the grid that the checkpoint has for it."""
        ...

    def remarks(self) -> list[str]:
        """What the folder holds that is not taken, a line each."""
        ...


def quantization_config(folder: Path) -> dict[str, Any]:
    """The `quantization_config` of the folder's config.json, of the model or of one of its parts; {} for none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    parts = [config, *(config.get(name) or {} for name in ("text_config", "vision_config"))]
    for part in parts:
        for name in ("quantization_config", "compression_config"):
            found = part.get(name) if isinstance(part, dict) else None
            if isinstance(found, dict) and found:
                return found
    return {}


def reader_of(folder: str | Path) -> Reader | None:
    """The reader of a folder's format; None for a float checkpoint and for one whose layers transformers makes.

    Raises ModelError for a format that is not read, and for a folder that contradicts its config.json.
    """
    from pyquant.interop import auto_round, gptq
    from pyquant.interop.compressed_tensors import CompressedReader

    place = Path(folder)
    method = require_read(place)
    config = quantization_config(place)
    match method:
        case "compressed-tensors":
            return CompressedReader.read(TensorFolder(place), config)
        case "gptq":
            return gptq.read(TensorFolder(place), config)
        case "auto-round":
            return auto_round.read(TensorFolder(place), config)
    return None


def require_read(folder: Path) -> str:
    """The `quant_method` of the folder's config.json, "" for a float checkpoint. Raises ModelError for one that is not
    read."""
    config = quantization_config(folder)
    method = foreign.method(config) if config else ""
    if config and method not in (*METHODS, *foreign.READ_METHODS):
        raise ModelError(
            f"the checkpoint {str(folder)!r} is quantized already ({foreign.named(config)}, as its quantization_config "
            "says), in a format that pyquant does not read (it reads compressed-tensors, GPTQ and AutoRound); give the "
            "unquantized model, or dequantize this one and save it without quantization_config"
        )
    return method
