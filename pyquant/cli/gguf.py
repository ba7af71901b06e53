# SPDX-License-Identifier: Apache-2.0
"""Float models whose weights are a .gguf file, as transformers reads it.

It owns finding the file. A folder with config.json is checkpoints.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.cli import checkpoints
from pyquant.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn


def load_any(source: str, dtype: str, file: str | None) -> nn.Module:
    """The float model of a folder: `file`, or its only .gguf where there is no config.json; else as checkpoints.load.

    Raises ModelError for what cannot be loaded.
    """
    name = file_of(source, file)
    return checkpoints.load(source, dtype) if name is None else _load(source, name, dtype)


def file_of(source: str, file: str | None) -> str | None:
    """The name of the .gguf file to read; None for a folder with config.json. Raises UsageError for a file that is not
    there."""
    folder = Path(source)
    if file is not None:
        if not (folder / file).is_file():
            raise UsageError(f"--gguf-file {file}: {source!r} has no such file")
        return file
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    found = sorted(folder.glob("*.gguf"))
    return found[0].name if len(found) == 1 else None


def _load(source: str, file: str, dtype: str) -> nn.Module:
    import torch
    import transformers

    if not sys.stderr.isatty():  # a bar is for a person who waits
        says: Any = transformers.utils.logging
        says.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(source, gguf_file=file, trust_remote_code=False)
        auto: Any = transformers.AutoModelForCausalLM
        model: nn.Module = auto.from_pretrained(
            source, config=config, gguf_file=file, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
    except ImportError as error:
        raise ImportError(f"{source}/{file}: {error}; pip install gguf") from error
    except Exception as error:  # whatever transformers makes of such a file
        first = next((line for line in str(error).split("\n") if line.strip()), type(error).__name__)
        raise ModelError(f"transformers cannot read '{source}/{file}' ({type(error).__name__}: {first})") from error
    return model.eval()
