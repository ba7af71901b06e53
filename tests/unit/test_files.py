# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all, with the mode that the umask gives, and the umask is never set."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pyquant
from pyquant import Policy, files
from pyquant.errors import PyquantError
from pyquant.sensitivity import Sensitivity
from pyquant.trace import Trace, capture


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing fails, as it does when the disk is full: after the bytes were written, before the file is in place."""

    def failed(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failed)


def sensitivity() -> Sensitivity:
    q = pyquant.prepare(torch.nn.Linear(8, 4), Policy.preset("w8a8"))
    batch = torch.randn(3, 8)
    pyquant.calibrate(q, [batch], progress=False)
    pyquant.convert(q)
    return pyquant.trace.sensitivity(q, [batch])


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: files.whole_text(path, "new"),
    "policy.yaml": lambda path: Policy.preset("w8a16").save(path),
    "policy.json": lambda path: Policy.preset("w8a16").save(path),
    "sensitivity.json": lambda path: sensitivity().save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_the_old_file(name: str, tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match="No space left on device"):
        WRITERS[name](path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_trace_that_cannot_be_saved_leaves_no_folder(tmp_path: Path, full_disk: None) -> None:
    with capture(torch.nn.Linear(4, 2), torch.randn(3, 4), tensors="*") as trace:
        pass
    with pytest.raises(OSError, match="No space left on device"):
        trace.save(tmp_path / "deep" / "trace")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_saved_trace_is_a_folder_of_trace_json_and_tensors(tmp_path: Path) -> None:
    with capture(torch.nn.Linear(4, 2), x := torch.randn(3, 4), tensors="*") as trace:
        pass
    trace.save(tmp_path / "new" / "trace")
    (tmp_path / "there").mkdir()
    trace.save(tmp_path / "there")
    for folder in (tmp_path / "new" / "trace", tmp_path / "there"):
        assert sorted(path.name for path in folder.iterdir()) == ["tensors", "trace.json"]
        loaded = Trace.load(folder)
        value = next(value for path, value in loaded.calls[0].tensors() if path.startswith("inputs"))
        assert torch.equal(loaded.tensor(value), x)


def test_modes_are_what_the_umask_gives(tmp_path: Path) -> None:
    code = (
        "import os\nos.umask(0o027)\n"
        "def refused(mask): raise AssertionError('the umask is of the whole process')\n"
        "os.umask = refused\n"
        "from pathlib import Path\nfrom pyquant import files\n"
        "files.whole_text(Path('text'), 'x')\n"
        "with files.folder(Path('flat'), last='b') as new: (new / 'b').write_text('x')\n"
        "with files.whole_folder(Path('deep')) as new: (new / 'sub').mkdir()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert {path.name: oct(mode(path)) for path in tmp_path.iterdir()} == {
        "text": "0o640",
        "flat": "0o750",
        "deep": "0o750",
    }


def test_a_link_and_a_mode_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    files.whole_text(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), mode(real)) == ("new", 0o600)


def test_a_device_is_written_to_and_a_folder_refused(tmp_path: Path) -> None:
    code = "from pyquant import Policy\nPolicy.preset('float').save('/dev/stdout')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "float"
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        files.whole_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match=r"the folder '.*none' does not exist; create it first"):
        files.whole_text(tmp_path / "none" / "x", "x")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "circle": ("x.circle", pyquant.circle.read),
    "policy": ("p.yaml", Policy.load),
    "sensitivity": ("s.json", Sensitivity.load),
    "trace": ("trace.json", lambda path: Trace.load(path.parent)),
    "bundle": ("manifest.json", lambda path: pyquant.verify.Session(path.parent)),
    "quantized": ("quantization.json", lambda path: pyquant.load_quantized(path.parent)),
}


@pytest.mark.parametrize("data", [POINTER, b""], ids=["pointer", "empty"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_a_file_that_was_not_fetched(name: str, data: bytes, tmp_path: Path) -> None:
    file, read = READERS[name]
    (tmp_path / file).write_bytes(data)
    words = r"is a Git LFS pointer, not the file itself; run `git lfs pull`" if data else r"is empty \(0 bytes\)"
    with pytest.raises(PyquantError, match=rf"{file}'?:? {words}"):
        read(tmp_path / file)


def test_the_weights_of_a_saved_model_that_were_not_fetched(tmp_path: Path) -> None:
    q = pyquant.prepare(torch.nn.Linear(8, 4), Policy.preset("w8a8"))
    pyquant.calibrate(q, [torch.randn(3, 8)], progress=False)
    pyquant.convert(q)
    pyquant.save_quantized(q, tmp_path / "q")
    (tmp_path / "q" / "quantized.safetensors").write_bytes(POINTER)
    with pytest.raises(PyquantError, match=r"quantized.safetensors' is a Git LFS pointer"):
        pyquant.load_quantized(tmp_path / "q", torch.nn.Linear(8, 4))


@pytest.mark.parametrize("size", [1, 4096, 10_000_001])
def test_a_mapped_checksum_is_that_of_the_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(torch.randint(0, 256, (size,), dtype=torch.uint8).tolist())
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(files, "_SPAN", 1 << 20)
    assert files.sha256(tmp_path / "x", mapped=True) == files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
