# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: a folder built beside its place, synced to disk, then moved there.

It owns the order of writes and renames. What the files hold is their writer's business; .circle files are native.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder(target: Path, *, last: str) -> Iterator[Path]:
    """A new empty folder to fill, which becomes `target` when the block ends well, and vanishes when it raises.

    Where `target` exists, the files take their places in it one by one, `last` at the end, so that a reader who checks
    them against `last` notices a crash in between; files of others stay. Raises OSError, with `target` untouched.
    """
    target = target.absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(target.parent)!r} does not exist; create it first")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{str(target)!r} exists and is not a folder")
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield new
        for file in new.iterdir():
            _sync(file)
        if not target.exists():
            new.chmod(0o777 & ~_umask())
            _sync(new)
            new.rename(target)
        else:
            for file in sorted(new.iterdir(), key=lambda f: (f.name == last, f.name)):
                file.replace(target / file.name)
            _sync(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def whole_text(target: Path, text: str) -> None:
    """Write one UTF-8 file; what stood there is replaced at the end. Raises OSError, with `target` as it was."""
    target = target.absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(target.parent)!r} does not exist; create it first")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        _sync(new)
        new.chmod(0o666 & ~_umask())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new empty folder to fill, with folders in it; it takes the place of `target`, old contents and all, at the end.

    Raises OSError, with `target` as it was.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{str(target)!r} exists and is not a folder")
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
        new.chmod(0o777 & ~_umask())
        for entry in [*new.rglob("*"), new]:
            _sync(entry)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _sync(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if target.exists():  # else it is all that is left
            shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
