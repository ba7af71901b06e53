# SPDX-License-Identifier: Apache-2.0
"""Files of a streamed checkpoint that change before all is saved: one error that names the file, nothing half."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyquant
from pyquant import Policy
from pyquant.cli.main import main
from pyquant.errors import CheckpointError
from pyquant.models.llama import Profile, example
from pyquant.stream import Stream
from tests import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
FILE = "model.safetensors"


def edited(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\x01\x02\x03\x04")
    os.utime(file, ns=(1, 10**18))  # a clock of coarse steps would not show so quick an edit


def cut(file: Path) -> None:
    os.truncate(file, 100)


def deleted(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: value + 1 for name, value in tensors.items()}, file.with_name("new"))
    file.with_name("new").replace(file)


CHANGES: dict[Callable[[Path], None], str] = {
    edited: "was written to",
    cut: "has 100 bytes, and had ",
    deleted: "was deleted",
    replaced: "was replaced by another file",
}
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = example.tiny_model()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


DATA = [{"input_ids": torch.arange(9)[None]}, {"input_ids": torch.arange(7, 20)[None]}]


def message(folder: Path, change: Callable[[Path], None]) -> str:
    return rf"{FILE}' {CHANGES[change]}.*it must stay as it was .* put it back, and start again from loading the model"


@every_change
@pytest.mark.parametrize("when", ["prepare", "calibrate", "rotate", "gptq", "convert", "export", "save"])
def test_each_step_names_the_file(folder: Path, tmp_path: Path, when: str, change: Callable[[Path], None]) -> None:
    stream = Stream(tmp_path)
    fp: Any = pyquant.interop.load(folder, stream=stream)
    policy = Policy.preset("w4a16" if when in ("rotate", "gptq") else "w8a8")
    steps: dict[str, Callable[[Any], Any]] = {
        "prepare": lambda _: pyquant.prepare(fp, policy, stream=stream),
        "rotate": pyquant.algorithms.rotate,
        "gptq": lambda q: pyquant.algorithms.gptq(q, DATA, memory=1),
        "calibrate": lambda q: pyquant.calibrate(q, DATA),
        "convert": pyquant.convert,
    }
    profile = Profile(max_seq_len=16, prefill_lengths=(8,))
    ends: dict[str, Callable[[Any], Any]] = {
        "save": lambda q: pyquant.save_quantized(q, tmp_path / "saved"),
        "export": lambda q: pyquant.export_bundle(q, tmp_path / "saved", profile),
    }
    q: Any = None
    for name, step in steps.items():
        if name == when:
            break
        if name == "prepare" or (name not in ("rotate", "gptq") and when not in ("rotate", "gptq")):
            made = step(q)
            q = made if name == "prepare" else q
    change(folder / FILE)
    with pytest.raises(CheckpointError, match=message(folder, change)):
        (steps | ends)[when](q)
    assert not (tmp_path / "saved").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_needs_no_file_of_the_checkpoint_is_not_stopped(folder: Path, tmp_path: Path) -> None:
    """Weights of another type lie in files of the stream."""
    stream = Stream(tmp_path)
    fp = pyquant.interop.load(folder, "bfloat16", stream=stream)
    shutil.rmtree(folder)
    q = pyquant.prepare(fp, Policy.preset("w8a8"), stream=stream)
    pyquant.calibrate(q, DATA)


def test_the_command_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A file that is cut while the bundle is written, after the ranges are known."""
    checkpoints.qwen3_vl(tmp_path / "model")
    checkpoints.picture(tmp_path / "a.png", 16, 16)
    checkpoints.lines(tmp_path / "c.jsonl", {"image": "a.png", "prompt": "what is this ?"})
    export = pyquant.export_bundle

    def late(*args: Any, **options: Any) -> Any:
        for file in (tmp_path / "model").glob("*.safetensors"):
            cut(file)
        return export(*args, **options)

    monkeypatch.setattr(pyquant, "export_bundle", late)
    words = ["quantize", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "c.jsonl"), "--stream"]
    assert main([*words, "--recipe", "w8a8-fast", "--out", str(tmp_path / "out")]) == 2
    assert f"{FILE}' has 100 bytes, and had " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "c.jsonl", "model"]


def test_a_copy_of_a_stream_guards_nothing_of_the_first(folder: Path, tmp_path: Path) -> None:
    import pickle

    stream = Stream(tmp_path)
    pyquant.interop.load(folder, stream=stream)
    other = pickle.loads(pickle.dumps(stream))
    deleted(folder / FILE)
    other.check()
    with pytest.raises(CheckpointError, match="was deleted"):
        stream.check()


@pytest.mark.slow
def test_a_cut_file_is_an_error_and_no_signal(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: without the check it ends by SIGBUS."""
    program = (
        "import os, sys, pyquant, torch\n"
        "s = pyquant.Stream(sys.argv[2])\n"
        "fp = pyquant.interop.load(sys.argv[1], stream=s)\n"
        "q = pyquant.prepare(fp, pyquant.Policy.preset('w8a8'), stream=s)\n"
        "s.release(q.parameters())\n"
        f"os.truncate(os.path.join(sys.argv[1], {FILE!r}), 100)\n"
        "try:\n    pyquant.calibrate(q, [torch.arange(9)[None]])\n"
        "except pyquant.PyquantError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path)], capture_output=True, text=True,
                         timeout=300, check=False)  # fmt: skip
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    assert "has 100 bytes" in ran.stdout
