# SPDX-License-Identifier: Apache-2.0
"""Batches made elsewhere: the layouts that are documented, lazily read, and files that are none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pyquant import calibration
from pyquant.errors import CalibrationError, InputError

FIRST = {"input_ids": torch.arange(4)[None], "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
SECOND = {"input_ids": torch.arange(7)[None] + 1}


def same(got: Any, wanted: list[dict[str, Tensor]]) -> bool:
    batches = list(got)
    return len(batches) == len(wanted) and all(
        set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        for a, b in zip(batches, wanted, strict=True)
    )


def test_one_batch_a_file_or_several_by_number(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "one.safetensors")
    assert same(calibration.read(tmp_path / "one.safetensors"), [FIRST])
    many = {**{f"{n}.input_ids": torch.full((1, 2), n) for n in range(11)}}
    save_file(many, tmp_path / "many.safetensors")
    data = calibration.read(tmp_path / "many.safetensors")
    assert [int(batch["input_ids"][0, 0]) for batch in data] == list(range(11)), "by number, not by spelling"
    assert data.where(10) == f"{tmp_path / 'many.safetensors'}, batch 10"


def test_a_pt_file_is_a_batch_or_a_list_of_them(tmp_path: Path) -> None:
    torch.save(FIRST, tmp_path / "one.pt")
    torch.save([FIRST, SECOND], tmp_path / "two.pt")
    assert same(calibration.read(tmp_path / "one.pt"), [FIRST])
    assert same(calibration.read(tmp_path / "two.pt"), [FIRST, SECOND])


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    save_file(SECOND, tmp_path / "b.safetensors")
    torch.save(FIRST, tmp_path / "a.pt")
    (tmp_path / "notes.txt").write_text("not a batch")
    assert same(calibration.read(tmp_path), [FIRST, SECOND])


def test_batches_are_read_when_asked_for_and_each_time_anew(tmp_path: Path) -> None:
    save_file({"0.x": torch.zeros(2), "1.x": torch.ones(2)}, tmp_path / "x.safetensors")
    data = calibration.read(tmp_path / "x.safetensors")
    data[0]["x"].fill_(9)
    assert data[0]["x"].tolist() == [0, 0]
    assert len(data) == 2
    assert data[1:][0]["x"].tolist() == [1, 1]
    assert len(list(data)) == len(list(data)) == 2, "may be gone through twice"
    with pytest.raises(IndexError):
        data[2]


def test_sample_takes_the_same_ones_for_the_same_seed_in_their_order(tmp_path: Path) -> None:
    save_file({f"{n}.x": torch.tensor([n]) for n in range(20)}, tmp_path / "x.safetensors")
    data = calibration.read(tmp_path / "x.safetensors")

    def picked(**options: int) -> list[int]:
        return [int(batch["x"]) for batch in data.sample(**options)]

    assert picked(count=5) == picked(count=5, seed=0) == sorted(picked(count=5))
    assert picked(count=5, seed=1) != picked(count=5)
    assert picked(count=99) == list(range(20))
    with pytest.raises(CalibrationError, match="at least one sample, got 0"):
        data.sample(0)


def test_a_step_that_fails_says_which_batch(tmp_path: Path) -> None:
    save_file({f"{n}.x": torch.tensor([n]) for n in range(3)}, tmp_path / "x.safetensors")

    def step(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if int(batch["x"]) == 2:
            raise InputError("two is too much")
        return {"y": batch["x"] + 1}

    data = calibration.read(tmp_path / "x.safetensors").map(step)
    assert int(data[1]["y"]) == 2
    with pytest.raises(CalibrationError, match=r"x\.safetensors, batch 2: two is too much"):
        data[2]


def write(path: Path, value: Any) -> None:
    if path.suffix == ".safetensors":
        save_file(value, path)
    elif isinstance(value, bytes):
        path.write_bytes(value)
    else:
        torch.save(value, path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/pyquant_was_here", "w"))


WRONG: dict[str, tuple[str, Any, str]] = {
    "no tensors": ("x.safetensors", {}, "has no tensor"),
    "number and none": ("x.safetensors", {"0.a": torch.ones(1), "b": torch.ones(1)}, "'b' has no number, other"),
    "twice": ("x.safetensors", {"0.a": torch.ones(1), "00.a": torch.ones(1)}, "same argument of one batch"),
    "cut": ("x.pt", b"PK\x03\x04 not a zip", r"cannot be read \(\w+: "),
    "pickle that runs code": ("x.pt", [Evil()], r"cannot be read \(UnpicklingError.*no other objects"),
    "no batches": ("x.pt", [], "has no batch"),
    "not a dict": (
        "x.pt",
        [FIRST, torch.ones(1)],
        "batch 1: a batch is a dict of .*, got a Tensor",
    ),
    "values": ("x.pt", {"a": 3}, "got {'a': 'int'}"),
    "suffix": ("x.npz", b"", r"ends in \.jsonl .*\.safetensors or \.pt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    file, value, message = WRONG[name]
    write(tmp_path / file, value)
    with pytest.raises(CalibrationError, match=message):
        calibration.read(tmp_path / file)


def test_a_truncated_file_a_missing_one_and_an_empty_folder(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-8])
    with pytest.raises(CalibrationError, match=r"x\.safetensors' cannot be read"):
        calibration.read(tmp_path / "x.safetensors")
    with pytest.raises(CalibrationError, match=r"none\.pt' cannot be read"):
        calibration.read(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"has no \.safetensors or \.pt file"):
        calibration.read(tmp_path / "empty")
