# SPDX-License-Identifier: Apache-2.0
"""The files of a Hugging Face folder beside config and weights: generation config, tokenizer, processor, chat template.

It owns which files these are and bringing them along unchanged. What a quantized model's own files hold is
checkpoint.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pyquant import files
from pyquant.errors import CheckpointError

GENERATION = "generation_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "feature_extractor_config.json",
)
FILES = frozenset({GENERATION, *TOKENIZER, *PROCESSOR})  # no code, no weights: what may lie in a saved folder


def copy(source: str, folder: Path) -> list[str]:
    """Copy what `source`, a checkpoint folder or hub name, has of TOKENIZER and PROCESSOR; the names that it has.

    Raises CheckpointError for a file that is a Git LFS pointer or empty, OSError for one that cannot be copied.
    """
    found = []
    for name in (*TOKENIZER, *PROCESSOR):
        path = _find(source, name)
        if path is None:
            continue
        if why := files.absent(path):
            raise CheckpointError(f"{str(path)!r} {why}")
        shutil.copyfile(path, folder / name)
        found.append(name)
    return found


def save(part: Any, what: str, folder: Path) -> None:
    """Let a tokenizer or processor write its files into `folder`. Raises CheckpointError for what cannot."""
    if not callable(getattr(part, "save_pretrained", None)):
        raise CheckpointError(
            f"{what}= is a {type(part).__name__}; expected a {what} of transformers (with save_pretrained)"
        )
    aside = folder / f".{what}"
    aside.mkdir()
    try:
        part.save_pretrained(aside)
        for path in sorted(aside.iterdir()):
            if path.is_file():
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def origin(config: Any) -> str | None:
    """The local folder that a model of `config` was loaded from; None when it is not known or no longer there."""
    name = getattr(config, "_name_or_path", None)
    return str(name) if name and Path(str(name), "config.json").is_file() else None


def local_folder(source: str) -> Path | None:
    """Where the files of `source`, a checkpoint folder or a hub name in the local cache, are; None: nowhere here."""
    found = _find(source, "config.json")
    return None if found is None else found.parent


def _find(source: str, name: str) -> Path | None:
    """A file of a folder, or of the local cache of a hub model."""
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, name)
    except ValueError:  # no name that a hub has: HFValidationError
        return None
    return Path(cached) if isinstance(cached, str) else None
