# SPDX-License-Identifier: Apache-2.0
"""Processes under torchrun that calibrate one model: the files of one process, and an error of one on all.

Each test starts several Pythons. Ranks as threads, in seconds, are tests/unit/core/test_core_ranks.py.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import checkpoints
from tests.ranks import torchrun

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# A program of a user: `save` writes what `quantize` returns; the others are what may go wrong on rank 1.
PROGRAM = """
import os, signal, sys
import torch, torch.distributed as dist
import pyquant
from pyquant.distributed import Group
from tests.unit.core.test_core_ranks import family, parts

torch.set_num_threads(1)
mode, name, out = sys.argv[1:]
alone = "RANK" not in os.environ
if not alone:
    dist.init_process_group("gloo")
group = None if alone else Group.of_torch()
fp, data = family(name)

def batches(own):
    yield own[0]
    if group.rank == 1 and mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if group.rank == 1 and mode == "fails":
        yield {"input_ids": torch.full((1, 3), 9999)}
    yield from own[1:]

own = data if group is None else parts(data, group.size)[group.rank]
if mode == "empty":
    own = [] if group.rank == 1 else own
elif mode != "save":
    own = batches(own)
try:
    q = pyquant.quantize(fp, own, "w8a8-fast", progress=False, group=group)
except pyquant.PyquantError as error:
    print(f"<{group.rank} raised {error}>", flush=True)
    sys.exit(3)
if group is None or group.first:
    pyquant.save_quantized(q, out)
print(f"<{0 if group is None else group.rank} done>", flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` with its processor; `c.jsonl`: an image, two images in the text, text alone; `program.py`."""
    place = tmp_path_factory.mktemp("ranks")
    checkpoints.qwen3_vl(place / "model")
    checkpoints.picture(place / "a.png", 16, 24)
    checkpoints.picture(place / "b.png", 16, 16, seed=1)
    checkpoints.lines(
        place / "c.jsonl",
        {"image": "a.png", "prompt": "what is this ?"},
        {"images": ["b.png", "a.png"], "prompt": "read <image> and <image>"},
        {"prompt": "the digits"},
    )
    (place / "program.py").write_text(PROGRAM)
    return place


def command(place: Path, recipe: str, out: str) -> list[str]:
    words = ["quantize", "--model", str(place / "model"), "--recipe", recipe, "--data", str(place / "c.jsonl")]
    return ["-m", "pyquant", *words, "--out", str(place / out)]


def one_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=600, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_command_writes_the_files_of_one_process(place: Path) -> None:
    alone = one_process(command(place, "w8a8-fast", "alone"))
    assert alone.returncode == 0, alone.stderr
    for size in (2, 3):
        ran = torchrun(size, command(place, "w8a8-fast", f"of-{size}"))
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("calibrated on 3 samples") == 1, "rank 0 alone prints"
        assert contents(place / f"of-{size}") == contents(place / "alone")


def test_gptq_of_two_processes_decides_by_the_rows_of_both(place: Path) -> None:
    """Not compared by bytes: second moments are equal but for the rounding of their sum."""
    assert one_process(command(place, "w4a16", "gptq-alone")).returncode == 0
    ran = torchrun(2, command(place, "w4a16", "gptq-of-2"))
    assert ran.returncode == 0, ran.stderr
    one, two = (place / name for name in ("gptq-alone", "gptq-of-2"))
    assert set(contents(one)) == set(contents(two))
    logs = [list(csv.DictReader((folder / "quantization_log.csv").read_text().splitlines())) for folder in (one, two)]
    assert any(row["how"] == "gptq" for row in logs[0])
    for alone, both in zip(*logs, strict=True):
        assert {**alone, "loss": ""} == {**both, "loss": ""}, "the same weights by the same rows"
        assert float(both["loss"] or 0) == pytest.approx(float(alone["loss"] or 0), rel=1e-3)


def test_streamed_processes_write_the_files_of_one_that_is_not(place: Path) -> None:
    """Ranges are those of one process bit for bit; second moments of two processes those of two, streamed or not."""
    assert one_process(command(place, "w8a8-fast", "plain")).returncode == 0
    ran = torchrun(2, [*command(place, "w8a8-fast", "plain-streamed"), "--stream", "--cache-gb", "0.000001"])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("calibrated on 3 samples") == 1, "rank 0 alone prints"
    assert contents(place / "plain-streamed") == contents(place / "plain")
    for out, more in (("decided", []), ("decided-streamed", ["--stream"])):
        ran = torchrun(2, [*command(place, "w4a16", out), *more])
        assert ran.returncode == 0, ran.stderr
    assert contents(place / "decided-streamed") == contents(place / "decided")
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")], "nothing is left of either process"


@pytest.mark.parametrize(("name", "size"), [("gemma4", 2), ("gemma4", 3), ("llama", 3)])
def test_a_program_saves_the_model_of_one_process(place: Path, name: str, size: int) -> None:
    program, out = str(place / "program.py"), place / f"{name}-of-{size}"
    alone = one_process([program, "save", name, str(place / f"{name}-alone-{size}")])
    assert alone.returncode == 0, alone.stderr
    ran = torchrun(size, [program, "save", name, str(out)], PYTHONPATH=str(ROOT))
    assert ran.returncode == 0, ran.stderr
    assert sorted(re.findall("<[0-9] done>", ran.stdout)) == [f"<{rank} done>" for rank in range(size)]
    assert contents(out) == contents(place / f"{name}-alone-{size}")


def ranks(place: Path, mode: str) -> list[subprocess.CompletedProcess[str]]:
    """Three processes without a launcher, so that nobody ends the others when one of them ends."""
    port = str(20000 + os.getpid() % 20000)
    base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "3", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **base}
    words = [sys.executable, str(place / "program.py"), mode, "llama", str(place / mode)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(words, env={**env, "RANK": str(rank)}, **pipes) for rank in range(3)]
    found = []
    for process in started:
        out, errors = process.communicate(timeout=600)
        found.append(subprocess.CompletedProcess(words, process.returncode, out, errors))
    assert not (place / mode).exists(), "nothing is written"
    return found


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("empty", "rank 1: calibrate got no batches"),
        ("fails", "rank 1: batch 1: the model raised InputError: id 9999"),
    ],
)
def test_an_error_of_one_rank_is_raised_on_all(place: Path, mode: str, message: str) -> None:
    for rank, ended in enumerate(ranks(place, mode)):
        assert ended.returncode == 3, ended.stderr
        assert ended.stdout.startswith(f"<{rank} raised {message}"), ended.stdout


def test_a_killed_rank_is_named_by_the_others(place: Path) -> None:
    first, killed, last = ranks(place, "killed")
    assert killed.returncode == -9
    for rank, ended in ((0, first), (2, last)):
        assert ended.returncode == 3, ended.stderr
        assert ended.stdout.startswith(f"<{rank} raised rank 1: it ended without a word"), ended.stdout


def test_torchrun_ends_the_others_of_a_killed_rank_and_nothing_is_written(place: Path) -> None:
    ran = torchrun(3, [str(place / "program.py"), "killed", "llama", str(place / "torn")], PYTHONPATH=str(ROOT))
    assert ran.returncode != 0
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in ran.stderr, "torchrun's own report"
    assert "done" not in ran.stdout
    assert not (place / "torn").exists()


def test_more_processes_than_samples_is_one_error_of_the_command(place: Path) -> None:
    ran = torchrun(4, command(place, "w8a8-fast", "many"))
    assert ran.returncode != 0
    assert ran.stderr.count("3 samples are too few for 4 processes") == 1, ran.stderr
    assert not (place / "many").exists()
