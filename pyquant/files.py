# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all: written to a temporary name, synced to disk, then moved to their place.
And texts that are read, or refused in words.

It owns the order of writes and renames, and why a file has no text. The contents are the writer's and the reader's;
.circle files are written natively. The process's umask applies because the kernel applies it when a file or folder is
created: nothing here reads or sets it, since `os.umask` changes it for all threads of the process.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LFS = b"version https://git-lfs.github.com/spec/"
_SPAN = 1 << 28  # bytes that are hashed in one call, so that an interrupted program ends in tenths of a second


@contextmanager
def folder(target: Path, *, last: str) -> Iterator[Path]:
    """A new empty folder to fill, which becomes `target` when the block ends without an error, and is removed when it
    raises.

    Where `target` exists, the files take their places in it one by one, `last` at the end, so that a reader who checks
    them against `last` notices a crash in between; other files in it stay. Raises OSError, with `target` untouched.
    """
    target = target.absolute()
    _require_parent(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{str(target)!r} exists and is not a folder")
    new = _new_folder(target)
    try:
        yield new
        with ThreadPoolExecutor(4, "pyquant-sync") as pool:  # one commit of the file system's journal serves several
            for _ in pool.map(_sync, new.iterdir()):
                pass
        if not target.exists():
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
    """Write one UTF-8 file, which takes the place of `target` at the end.

    A symbolic link stays and the file that it names is replaced; a replaced file keeps its mode. A device or pipe
    (/dev/stdout) is written to directly. Raises OSError, with `target` as it was.
    """
    target = target.absolute()
    _require_parent(target)
    data = text.encode("utf-8")
    mode = _mode(target)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{str(target)!r} is a folder; name a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        target.write_bytes(data)
        return
    target = target.resolve()
    new = _beside(target)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            new.chmod(stat.S_IMODE(mode))
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write one file to; it takes the place of `target` when the block ends without an error.

    Raises OSError, with `target` as it was.
    """
    target = target.absolute()
    _require_parent(target)
    new = _beside(target)
    try:
        yield new
        _sync(new)
        new.replace(target)
        _sync(target.parent)
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
    new = _new_folder(target)
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
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
        if target.exists():  # else `old` is the only copy
            shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path, *, mapped: bool = False) -> str:
    """The checksum of a file, in hexadecimal.

    mapped: of a file that is read through a memory map meanwhile (one that is cut then ends the process): through such
    a map too, in few calls, so that a thread that does this hardly ever waits for the interpreter.
    """
    if mapped:
        return _sha256_of_map(path)
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _sha256_of_map(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            pages.madvise(mmap.MADV_SEQUENTIAL)
        with memoryview(pages) as data:
            for start in range(0, len(data), _SPAN):
                digest.update(data[start : start + _SPAN])
    return digest.hexdigest()


def absent(path: Path) -> str | None:
    """Why a file that is there has no contents, in words that follow its name: a Git LFS pointer, or zero bytes.

    None for any other file, and for one that cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError:
        return None
    if start == _LFS:
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it again"
    return None if start else "is empty (0 bytes); download or copy it again"


def text(path: Path, what: str, error: type[Exception], *, empty: bool = False) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises `error` for one that is not there, cannot be opened, has no contents (unless `empty`) or no UTF-8 text, in
    words that begin with `what` and the name: "the questions 'vqa.jsonl' ...".
    """
    said = f"{what} {str(path)!r}"
    if (why := absent(path)) and not (empty and path.is_file() and not path.stat().st_size):
        raise error(f"{said} {why}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as caught:
        raise error(f"{said} cannot be read: {caught.strerror or caught}") from caught
    except UnicodeDecodeError as caught:
        raise error(f"{said} is no UTF-8 text (byte {caught.start})") from caught


def json_lines(path: Path, what: str, error: type[Exception]) -> Iterator[tuple[str, Any]]:
    """(`data.jsonl, line 3`, its value) of each line that is not blank. Raises `error` as `text` does, and for a line
    that is no JSON."""
    for number, row in enumerate(text(path, what, error, empty=True).split("\n"), 1):
        if not row.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(row)
        except json.JSONDecodeError as caught:
            raise error(f"{where}: not valid JSON: {caught.msg} at column {caught.colno}") from caught


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(target.parent)!r} does not exist; create it first")


def _beside(target: Path) -> Path:
    """A name that no file has, in the folder of `target`."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}")


def _new_folder(target: Path) -> Path:
    new = _beside(target)
    new.mkdir()
    return new


def _mode(path: Path) -> int | None:
    """The mode of a file, through symbolic links; None when there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
