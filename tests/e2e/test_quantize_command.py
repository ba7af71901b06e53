# SPDX-License-Identifier: Apache-2.0
"""`pyquant quantize` on a whole Qwen3-VL folder with its processor and pictures, as a user runs it: in a process.

What single options do, and what is refused, is tests/unit/cli/test_quantize.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Qwen3VLForConditionalGeneration

import pyquant
from pyquant import calibration
from pyquant.cli.main import main
from pyquant.models import qwen3_vl
from tests import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` with its processor; `c.jsonl`: an image, two images in the text, text alone."""
    place = tmp_path_factory.mktemp("command")
    checkpoints.qwen3_vl(place / "model")
    checkpoints.picture(place / "a.png", 16, 24)
    checkpoints.picture(place / "b.png", 16, 16, seed=1)
    checkpoints.lines(
        place / "c.jsonl",
        {"image": "a.png", "prompt": "what is this ?"},
        {"images": ["b.png", "a.png"], "prompt": "read <image> and <image>"},
        {"prompt": "the digits"},
    )
    return place


def command(place: Path, out: str, *more: str, data: str = "c.jsonl", recipe: str = "w4a16-fast") -> list[str]:
    words = ["quantize", "--model", str(place / "model"), "--recipe", recipe, "--data", str(place / data)]
    return [*words, "--out", str(place / out), *more]


@pytest.fixture(scope="module")
def ran(place: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-W", "error::UserWarning:pyquant", "-m", "pyquant.cli.main", *command(place, "out")]
    threads = str(torch.get_num_threads())  # sums in another order give other last bits
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    return subprocess.run(program, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_says_what_it_guessed_and_did(ran: subprocess.CompletedProcess[str], place: Path) -> None:
    assert ran.returncode == 0, ran.stderr
    for part in (
        "guessed: image grids 4x4, 4x6: those of the calibration data",
        "guessed: max sequence length 128: the longest prompt has ",
        "guessed: prefill length 64: the longest prompt has ",
        "Qwen3VLForConditionalGeneration, policy w4a16-fast: ",
        "calibrated on 3 samples",
        "time: read data ",
        "peak memory: read data ",
    ):
        assert part in ran.stdout, ran.stdout
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in ran.stdout.splitlines() if "│" in row]
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert {name: (str(entry["operators"]), "0") for name, entry in manifest["graphs"].items()} == {
        name: (operators, missing) for name, _, operators, missing, *_ in rows
    }, "one row a graph, and no tensor without qparams"
    for *_, spent, peak in rows:
        assert re.fullmatch(r"[0-9]+\.[0-9] s", spent), spent
        assert re.fullmatch(r"0\.[0-9]{2} GiB", peak), peak


def test_the_folder_is_bundle_model_and_recipe(ran: subprocess.CompletedProcess[str], place: Path) -> None:
    out = place / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"vision_t1_h4_w4", "vision_t1_h4_w6", "fusion_s64", "prefill_s64", "decode", "lm_head"} <= set(
        manifest["graphs"]
    )
    files = {entry["file"] for entry in manifest["graphs"].values()}
    assert {p.name for p in out.iterdir()} == {*files, "calibration.json", "manifest.json", "quantized", "recipe.yaml"}
    for file in files:
        assert pyquant.circle.check(out / file) == []
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["graphs"]["max_seq_len"] == 128
    assert recipe["graphs"]["prefill_lengths"] == [64]
    assert recipe["graphs"]["image_grids"] == [[1, 4, 4], [1, 4, 6]]


def test_the_files_are_those_of_the_public_functions(ran: subprocess.CompletedProcess[str], place: Path) -> None:
    fp = Qwen3VLForConditionalGeneration.from_pretrained(place / "model", attn_implementation="eager")
    data = calibration.read(place / "c.jsonl", place / "model")
    q = pyquant.prepare(fp, pyquant.Policy.preset("w4a16-fast"))
    pyquant.calibrate(q, data)
    pyquant.convert(q)
    profile = qwen3_vl.Profile(max_seq_len=128, image_grids=((1, 4, 4), (1, 4, 6)), prefill_lengths=(64,))
    graphs = profile.graphs(q)
    for name in ("vision_t1_h4_w6", "prefill_s64"):
        part, own = graphs[name]
        program = pyquant.export(part, own, name=name)
        assert (place / "out" / f"{name}.circle").read_bytes() == program.to_bytes(), name
    loaded: Any = pyquant.load_quantized(place / "out" / "quantized")
    batch = {**data[1], "use_cache": False}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, q(**batch).logits)


def test_text_alone_leaves_the_vision_tower_out_when_told(place: Path, capsys: Any) -> None:
    checkpoints.lines(place / "t.jsonl", {"prompt": "what is this ?"})
    assert main(command(place, "text", data="t.jsonl")) == 2
    message = capsys.readouterr().err
    assert "saw no calibration data" in message
    assert "  model.visual.blocks.*.attn.core:attn_out (2 sites)" in message
    assert "sites have no usable range; they are listed above" in message
    assert not (place / "text").exists()
    unused = ["--unused", "model.visual*", "--unused", "*deepstack_*", "--prefill-lengths", "32", "--max-seq-len", "40"]
    assert main(command(place, "text", *unused, data="t.jsonl")) == 0
    assert "vision_t" not in capsys.readouterr().out
    manifest = json.loads((place / "text" / "manifest.json").read_text())
    assert {"prefill_s32", "decode", "lm_head"} <= set(manifest["graphs"])
    assert not any("vision" in name or "fusion" in name for name in manifest["graphs"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image-grid", "4x5"], "ProfileError: the image grid 1x4x5 (frames x height x width): "),
        (["--max-seq-len", "9000"], "ProfileError: max_seq_len 9000 is beyond the model's max_position_embeddings"),
        (["--prefill-lengths", "64", "--max-seq-len", "32"], "ProfileError: the prefill length 64 is more than"),
        (["--layers", "whole"], "ProfileError: layers='whole' is one graph for prompts with the same images"),
    ],
    ids=["grid that does not merge", "longer than the model", "prefill beyond", "whole of several kinds"],
)
def test_what_the_model_cannot_do_is_said_before_weights_are_read(
    more: list[str], message: str, place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyquant.cli.checkpoints.load", lambda *_: pytest.fail("the weights were read"))
    assert main(command(place, "never", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (place / "never").exists()


def test_a_prompt_with_another_number_of_images_is_named(place: Path, capsys: Any) -> None:
    checkpoints.lines(
        place / "n.jsonl", {"image": "a.png", "prompt": "fine"}, {"image": "a.png", "prompt": "<image><image>"}
    )
    assert main(command(place, "never", data="n.jsonl")) == 2
    assert "n.jsonl, line 2: the prompt has a place for 2 image(s) and the line has 1" in capsys.readouterr().err
