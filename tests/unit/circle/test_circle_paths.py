# SPDX-License-Identifier: Apache-2.0
"""Where files go and come from: nothing but a regular file is replaced, no input is written over, nothing blocks."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

import pyquant
from pyquant._launch import program
from pyquant.errors import CircleError
from tests.golden import make

MODEL = Path(make.__file__).parent / "uint8_linear.circle"


def run(*words: object) -> tuple[int, str]:
    done = subprocess.run([program(), *map(str, words)], capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture
def taken_apart(tmp_path: Path) -> tuple[Path, Path]:
    plan, weights = tmp_path / "plan.json", tmp_path / "w.safetensors"
    assert run("plan", MODEL, "-o", plan, "--weights", weights)[0] == 0
    return plan, weights


def test_write_refuses_to_replace_a_pipe(taken_apart, tmp_path):
    plan, weights = taken_apart
    os.mkfifo(tmp_path / "pipe")
    code, text = run("write", plan, "--weights", weights, "-o", tmp_path / "pipe")
    assert (code, "is a device, pipe or socket, not a regular file; name a file" in text) == (2, True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "plan.json", "w.safetensors"]


def test_reading_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, text = run("inspect", tmp_path / "pipe")
    assert (code, "E_OPEN" in text, "not a regular file" in text) == (2, True, True)


@pytest.mark.parametrize("spelling", ["{0}", "{1}/./{2}", "{1}/link"], ids=["same", "dotted", "link"])
def test_plan_keeps_its_input(tmp_path, spelling):
    model = tmp_path / "x.circle"
    model.write_bytes(MODEL.read_bytes())
    (tmp_path / "link").symlink_to(model)
    output = spelling.format(model, tmp_path, model.name)
    code, text = run("plan", model, "-o", output, "--weights", tmp_path / "w.safetensors")
    assert (code, "are one file, and writing would lose it; name another" in text) == (2, True)
    assert model.read_bytes() == MODEL.read_bytes()


def test_plan_wants_two_outputs(tmp_path):
    code, text = run("plan", MODEL, "-o", tmp_path / "same", "--weights", f"{tmp_path}/./same")
    assert (code, "are one file" in text) == (2, True)
    assert not (tmp_path / "same").exists()


def test_write_keeps_its_weights(taken_apart):
    plan, weights = taken_apart
    before = weights.read_bytes()
    code, text = run("write", plan, "--weights", weights, "-o", weights)
    assert (code, "are one file" in text) == (2, True)
    assert weights.read_bytes() == before


@pytest.mark.parametrize(("path", "text"), [("", "the path is empty"), ("a\0b", "NUL byte")], ids=["empty", "nul"])
def test_write_names_a_path_that_cannot_be(path, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = make.uint8_linear()
    with pytest.raises(CircleError, match=text):
        pyquant.circle.write(plan.text(), plan.constants, path)
    assert list(tmp_path.iterdir()) == []
