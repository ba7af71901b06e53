# SPDX-License-Identifier: Apache-2.0
"""Every form of image is read as transformers.image_utils.load_image reads it, EXIF orientation included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from pyquant import calibration
from pyquant.calibration.processor import open_image
from pyquant.cli.trace_run import inputs
from pyquant.errors import CalibrationError
from tests import checkpoints


def photo(height: int = 16, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rotated(path: Path, orientation: int, **options: Any) -> Path:
    image = photo()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return path


def converted(mode: str) -> Callable[[Path], Any]:
    return lambda path: photo().convert(mode).save(path)


def palette_with_transparency(path: Path) -> None:
    photo().convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(path, transparency=3)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 65536, (16, 24), dtype=np.uint16)).save(path)


def animated(path: Path) -> None:
    photo().save(path, save_all=True, append_images=[photo().rotate(180)], duration=10)


FORMS: dict[str, Callable[[Path], Any]] = {
    **{f"orientation_{n}.jpg": lambda path, n=n: rotated(path, n) for n in range(1, 9)},  # type: ignore[misc]
    "orientation_6.png": lambda path: rotated(path, 6),
    "orientation_6.webp": lambda path: rotated(path, 6, lossless=True),
    "rgba.png": converted("RGBA"),
    "palette.png": converted("P"),
    "palette_transparent.png": palette_with_transparency,
    "gray.png": converted("L"),
    "gray_alpha.png": converted("LA"),
    "black_white.png": converted("1"),
    "sixteen_bits.png": sixteen_bits,
    "cmyk.jpg": converted("CMYK"),
    "animated.gif": animated,
    "animated.png": animated,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    with Image.open(tmp_path / name) as image:  # as load_image opens a path; it leaves animated files open
        theirs = load_image(image)
        for source in (tmp_path / name, str(tmp_path / name), image):
            mine = open_image(source, "here")
            assert (mine.mode, mine.size) == ("RGB", theirs.size)
            assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_a_photo_on_its_side_stands_upright(tmp_path: Path) -> None:
    assert photo().size == (24, 16)
    assert open_image(rotated(tmp_path / "x.jpg", 6), "here").size == (16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.qwen3_vl(tmp_path_factory.mktemp("images") / "m")


def test_the_grid_of_a_photo_on_its_side_is_that_of_transformers(folder: Path, tmp_path: Path) -> None:
    rotated(tmp_path / "x.png", 6)
    theirs = checkpoints.image_processor(folder)(load_image(str(tmp_path / "x.png")), return_tensors="pt")
    assert theirs["image_grid_thw"].tolist() == [[1, 6, 4]]
    rows = checkpoints.lines(tmp_path / "d.jsonl", {"image": "x.png", "prompt": "what?"})
    batch = calibration.read(rows, folder)[0]
    assert batch["image_grid_thw"].tolist() == [[1, 6, 4]]
    assert torch.equal(batch["pixel_values"], theirs["pixel_values"])


def test_trace_reads_images_the_same_way(folder: Path, tmp_path: Path) -> None:
    from argparse import Namespace

    from pyquant.cli import checkpoints as command

    rotated(tmp_path / "x.png", 6)
    args = Namespace(image=[str(tmp_path / "x.png")], prompt="what?", ids=None, model=str(folder))
    batch = inputs(args, command.load(str(folder)), lambda note: None)
    assert batch["image_grid_thw"].tolist() == [[1, 6, 4]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer.*git lfs pull"),
        (b"", r"is empty \(0 bytes\)"),
        (b"no image at all", "cannot be opened as an image"),
    ],
    ids=["pointer", "empty", "text"],
)
def test_what_is_no_image_is_said(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(CalibrationError, match=f"d.jsonl, line 3: .*{words}"):
        open_image(tmp_path / "x.png", "d.jsonl, line 3")
