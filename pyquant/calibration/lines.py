# SPDX-License-Identifier: Apache-2.0
"""Lines of calibration data: a JSON object each, a prompt and the image files that belong to it.

It owns the form of a line. Opening images and turning a line into tensors is processor.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyquant import files
from pyquant.errors import CalibrationError

KEYS = ("image", "images", "prompt")


@dataclass(frozen=True)
class Line:
    """A prompt (None: an image alone) and its image files, in order. `where` is `calib.jsonl, line 3`."""

    where: str
    prompt: str | None
    images: tuple[Path, ...] = ()


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a .jsonl file: {"prompt": text, "image": file} or {"prompt": text, "images": [file, ...]}.

    File names are relative to the folder of `path`. Empty lines are skipped. Every image file must exist now, and is
    opened when its line is read. Raises CalibrationError that names the file and the line.
    """
    path = Path(path)
    read = files.json_lines(path, "calibration data", CalibrationError)
    lines = [_line(data, path.parent, where) for where, data in read]
    if not lines:
        raise CalibrationError(
            f'calibration data {str(path)!r} has no line; write one such as {{"image": "cat.png", "prompt": "What is '
            f'this?"}} for each sample'
        )
    return lines


def _line(data: Any, folder: Path, where: str) -> Line:
    if not isinstance(data, dict) or not data:
        raise CalibrationError(f"{where}: a line is an object with the keys {', '.join(KEYS)}; got {_short(data)}")
    if unknown := sorted(set(data) - set(KEYS)):
        raise CalibrationError(
            f"{where}: the key {unknown[0]!r} is not known; a line has {', '.join(KEYS)} (batches that hold anything "
            f"else, such as videos, are given as .safetensors or .pt)"
        )
    prompt = data.get("prompt")
    if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
        raise CalibrationError(f"{where}: 'prompt' is a text that is not empty, got {_short(prompt)}")
    images = _images(data, folder, where)
    if prompt is None and not images:
        raise CalibrationError(f"{where}: a line needs a prompt, an image, or both")
    return Line(where, prompt, images)


def _images(data: dict[str, Any], folder: Path, where: str) -> tuple[Path, ...]:
    if data.get("image") is not None and data.get("images") is not None:
        raise CalibrationError(f"{where}: 'image' and 'images' mean the same; keep one of them")
    given = data.get("image") if data.get("image") is not None else data.get("images")
    names = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CalibrationError(f"{where}: an image is a file name, several are a list of them; got {_short(given)}")
    files = tuple(folder / name for name in names)
    for file in files:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise CalibrationError(
                f"{where}: the image {str(file)!r} {what}; names are relative to the folder of the data file"
            )
    return files


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
