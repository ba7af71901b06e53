# SPDX-License-Identifier: Apache-2.0
"""The folders of `pyquant evaluate`: what each one is, and loading it.

It owns telling float, quantized and bundle folders apart. Loading them is checkpoints.py, pyquant.load_quantized and
verify.Session.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyquant.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from pyquant.verify import Session

FLOAT, QUANTIZED, BUNDLE = "float", "quantized", "bundle"
KINDS = (FLOAT, QUANTIZED, BUNDLE)
INDEX, MANIFEST = "quantization.json", "manifest.json"


@dataclass(frozen=True)
class Chosen:
    """One subject: its name in tables, its kind, its folder (or a hub name)."""

    name: str
    kind: str
    source: str

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where files beside it may be: the folder, and what pyquant quantize wrote around it; none for a hub name."""
        folder = Path(self.source)
        if not folder.is_dir():
            return ()
        if self.kind == BUNDLE:
            return (folder, folder / QUANTIZED)
        around = self.kind == QUANTIZED and (folder.absolute().parent / MANIFEST).is_file()
        return (folder, folder.absolute().parent) if around else (folder,)


def choose(args: argparse.Namespace) -> list[Chosen]:
    """The subject, and what it is compared with. Raises UsageError for a folder that is none of the three."""
    kind, source = next((kind, value) for kind, value in _given(args) if value is not None)
    if kind == QUANTIZED and not (Path(source) / INDEX).is_file() and (Path(source) / QUANTIZED / INDEX).is_file():
        source = str(Path(source) / QUANTIZED)
    if kind != FLOAT:
        _require(kind, source)
    found = [(kind, source), *(_against(each, kind, source) for each in args.against)]
    names: list[str] = []
    for each, place in found:
        label = each if sum(other == each for other, _ in found) == 1 else f"{each} {Path(place).name}"
        names.append(label if label not in names else f"{each} {place}")
    if len(set(found)) < len(found):
        raise UsageError(f"a folder is given twice: {', '.join(place for _, place in found)}")
    return [Chosen(name, each, place) for name, (each, place) in zip(names, found, strict=True)]


def _given(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    return [(FLOAT, args.model), (QUANTIZED, args.quantized), (BUNDLE, args.bundle)]


def _against(text: str, kind: str, source: str) -> tuple[str, str]:
    """(kind, folder) of a folder, or of a kind that belongs to the subject."""
    if text in KINDS and not Path(text).is_dir():
        return text, _relative(text, kind, source)
    folder = Path(text)
    if (folder / MANIFEST).is_file():
        return BUNDLE, text
    if (folder / INDEX).is_file():
        return QUANTIZED, text
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--against {text}: it is a file; give a folder, or one of {', '.join(KINDS)}")
    return FLOAT, text


def _relative(wanted: str, kind: str, source: str) -> str:
    """The folder of another kind that belongs to the subject: pyquant quantize writes OUT and OUT/quantized."""
    if wanted == kind:
        raise UsageError(f"--against {wanted}: the subject {source!r} is that itself; give another folder")
    folder = Path(source)
    if kind == FLOAT:
        raise UsageError(f"--against {wanted}: which of the float model {source!r}? give the folder")
    quantized = folder / QUANTIZED if kind == BUNDLE else folder
    if wanted == BUNDLE:
        _require(BUNDLE, str(folder.parent))
        return str(folder.parent)
    _require(QUANTIZED, str(quantized))
    if wanted == QUANTIZED:
        return str(quantized)
    base = str(json.loads((quantized / INDEX).read_text(encoding="utf-8")).get("base", ""))
    if not base:
        raise UsageError(f"--against float: {str(quantized)!r} does not say what it was made of; give its folder")
    return base


def _require(kind: str, source: str) -> None:
    file = {QUANTIZED: INDEX, BUNDLE: MANIFEST}[kind]
    if not (Path(source) / file).is_file():
        what = {QUANTIZED: "quantized model", BUNDLE: "bundle"}[kind]
        raise UsageError(f"{source!r} is no folder of a {what}: it has no {file}")


@contextmanager
def loaded(args: argparse.Namespace, chosen: list[Chosen]) -> Iterator[Mapping[str, nn.Module | Session]]:
    """name -> model or Session, all at once; the runtimes of bundles are closed at the end."""
    import pyquant
    from pyquant.cli import gguf

    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for each in chosen:
            if each.kind == FLOAT:
                found[each.name] = gguf.load_any(each.source, args.dtype, args.gguf_file)
            elif each.kind == QUANTIZED:
                found[each.name] = pyquant.load_quantized(each.source)
            else:
                found[each.name] = stack.enter_context(pyquant.verify.Session(each.source, args.runtime))
        yield found
