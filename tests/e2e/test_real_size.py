# SPDX-License-Identifier: Apache-2.0
"""Gemma4 in the size of E2B through `pyquant quantize`, on a machine that could not hold its weights as floats; and,
in seconds, that no step copies a large table.

The slow test needs 8 GB of disk. All 35 layers: docs/models.md has the figures.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.real_size import make_checkpoint
from pyquant.cli import checkpoints
from tests.models.gemma4_model_tiny import conditional

GIB = 1 << 30
ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_script_writes_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_checkpoint, "SHARD", 20_000)
    monkeypatch.setattr(make_checkpoint, "BLOCK", 1_000)
    cfg = conditional("e2b", audio=True).config
    count = make_checkpoint.write(tmp_path, cfg)
    model = checkpoints.load(str(tmp_path), "bfloat16")
    stored = {id(value): value for value in [*model.parameters(), *model.state_dict(keep_vars=True).values()]}
    assert sum(value.numel() for value in stored.values()) == count
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert all(bool(torch.isfinite(value).all()) for value in stored.values())


def test_the_configuration_is_that_of_e2b() -> None:
    from transformers import Gemma4ForConditionalGeneration

    with torch.device("meta"):
        model = Gemma4ForConditionalGeneration(make_checkpoint.config())
    assert round(sum(value.numel() for value in model.parameters()) / 1e9, 2) == 5.10
    table = model.model.language_model.embed_tokens_per_layer.weight
    assert tuple(table.shape) == (262144, 8960)


# --- a table of 128 MiB, mapped from its file ---


@linux
def test_no_step_copies_a_table(tmp_path: Path) -> None:
    """In tables: the integers are half of one. A copy in bfloat16 would be 1, one in float32 would be 2.

    In a process of its own whose allocator gives memory back at once, so that only what the steps hold is counted.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    program = [sys.executable, "-m", "tests.e2e.table_steps", str(tmp_path)]
    ran = subprocess.run(program, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    grown = json.loads(ran.stdout)
    limits = {"quantize": 0.3, "export": 0.8, "save": 0.5, "load": 1.9}  # load: the new table, and pieces
    assert grown.keys() == limits.keys()
    assert {step: grown[step] for step, limit in limits.items() if not 0 < grown[step] < limit} == {}


# --- real width ---


@pytest.mark.slow
@linux
def test_seven_layers_at_full_width(tmp_path: Path) -> None:
    """The command's memory is the bfloat16 weights, mapped, and little more; a float32 model would take twice that."""
    count = make_checkpoint.write(tmp_path / "model", cfg := make_checkpoint.config(7))
    make_checkpoint.write_data(tmp_path / "data", cfg, samples=1, tokens=32)
    command = [
        "quantize",
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "data"),
        "--recipe",
        "w4a16-fast",
    ]
    command += [
        "--dtype",
        "bfloat16",
        "--max-seq-len",
        "128",
        "--prefill-lengths",
        "64",
        "--out",
        str(tmp_path / "out"),
    ]
    program = [sys.executable, "-m", "pyquant.cli.main", *command, "--per-layer-table", "host"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(program, env=env, capture_output=True, text=True, timeout=1800, check=False)
    assert ran.returncode == 0, ran.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < min(12 * GIB, count * 2 + 1.5 * GIB), f"{peak / GIB:.2f} GiB, {ran.stdout}"
    for part in ("time: read data ", "peak memory: read data ", "per_layer_embedding.safetensors"):
        assert part in ran.stdout, ran.stdout
    _check_rows(tmp_path)


def _check_rows(folder: Path) -> None:
    """The host's rows are the checkpoint's, rounded."""
    entry = json.loads((folder / "out" / "manifest.json").read_text())["tables"]["per_layer_embedding"]
    found = load_file(folder / "out" / entry["file"])
    name = "model.language_model.embed_tokens_per_layer.weight"
    index = json.loads((folder / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / "model" / index[name], framework="pt") as file:
        weight = file.get_tensor(name)
    picked = torch.tensor([0, 1, 100_000, len(weight) - 1])
    expected = (weight[picked].double() / found["scale"].double()).round()
    assert (found["rows"][picked].double() - expected).abs().max() <= 1  # ties may go the other way
    assert ((found["rows"][picked].double() - expected) != 0).double().mean() < 0.01
