# SPDX-License-Identifier: Apache-2.0
"""Prompts with images through a checkpoint's own processor: equal to what transformers makes of them, part by part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from pyquant import calibration
from pyquant.errors import CalibrationError
from tests import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vl`, `text`, `vision`: processors of three kinds; and pictures."""
    place = tmp_path_factory.mktemp("processors")
    config = transformers.AutoConfig.for_model("qwen3_vl")
    for name, images in (("vl", True), ("text", False)):
        (place / name).mkdir()
        config.save_pretrained(place / name)
        checkpoints.processor_files(place / name, images=images)
    checkpoints.gemma4_vision(place / "vision")
    checkpoints.picture(place / "a.png", 24, 40)
    checkpoints.picture(place / "b.png", 32, 32, seed=1)
    Image.new("L", (16, 16), 7).save(place / "grey.png")
    return place


@pytest.fixture(scope="module")
def reader(place: Path) -> calibration.Reader:
    return calibration.load_reader(place / "vl")


def visual(height: int, width: int) -> str:
    """The placeholder of an image of so many pixels: one token for each merged patch."""
    unit = checkpoints.PATCH * checkpoints.MERGE
    return "<|vision_start|>" + "<|image_pad|>" * (height // unit * (width // unit)) + "<|vision_end|>"


def read(reader: calibration.Reader, place: Path, **row: object) -> dict[str, torch.Tensor]:
    return calibration.read(checkpoints.lines(place / "x.jsonl", row), reader)[0]


def text(reader: calibration.Reader, batch: dict[str, torch.Tensor]) -> str:
    decoded = reader.tokenizer.decode(batch["input_ids"][0])
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert decoded.startswith(head)
    assert decoded.endswith(tail)
    return str(decoded[len(head) : -len(tail)])


def test_images_stand_first_unless_the_prompt_says_where(reader: calibration.Reader, place: Path) -> None:
    a, b = visual(24, 40), visual(32, 32)
    batch = read(reader, place, image="a.png", prompt="what?")
    assert text(reader, batch) == f"{a}what?"
    assert batch["image_grid_thw"].tolist() == [[1, 6, 10]]
    batch = read(reader, place, images=["b.png", "a.png"], prompt="<image>one, two<|image_pad|> three")
    assert text(reader, batch) == f"{b}one, two{a} three"
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 6, 10]]
    assert text(reader, read(reader, place, images=["a.png", "a.png"], prompt="same?")) == f"{a}{a}same?"
    assert "pixel_values" not in read(reader, place, prompt="no picture")


def test_pixels_are_those_of_the_image_processor(reader: calibration.Reader, place: Path) -> None:
    batch = read(reader, place, images=["a.png", "grey.png"], prompt="what?")
    pictures = [Image.open(place / name).convert("RGB") for name in ("a.png", "grey.png")]
    alone = checkpoints.image_processor(place / "vl")(pictures, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], alone["pixel_values"])
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["image_grid_thw"], alone["image_grid_thw"])


def test_without_a_chat_template_the_prompt_is_the_text(place: Path, tmp_path: Path) -> None:
    folder = checkpoints.copy(place / "vl", tmp_path / "plain", "chat_template.jinja")
    reader = calibration.load_reader(folder)
    batch = calibration.read(checkpoints.lines(place / "x.jsonl", {"image": "a.png", "prompt": "what?"}), reader)[0]
    assert reader.tokenizer.decode(batch["input_ids"][0]) == "<|image_pad|>" * 15 + "what?"


def test_a_tokenizer_alone_reads_text_and_says_why_it_reads_no_images(place: Path) -> None:
    reader = calibration.load_reader(place / "text")
    assert text(reader, read(reader, place, prompt="hello")) == "hello"
    with pytest.raises(CalibrationError, match=r"x\.jsonl, line 1: .*text has a tokenizer and no image processor"):
        read(reader, place, image="a.png", prompt="what?")


def test_an_image_processor_alone_reads_images_and_says_why_it_reads_no_text(place: Path) -> None:
    reader = calibration.load_reader(place / "vision")
    batch = read(reader, place, image="a.png")
    alone = checkpoints.image_processor(place / "vision")
    assert torch.equal(batch["pixel_values"], alone([Image.open(place / "a.png")], return_tensors="pt")["pixel_values"])
    with pytest.raises(CalibrationError, match=r"line 1: .*vision has no tokenizer, which this line needs"):
        read(reader, place, image="a.png", prompt="what?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "prompt": "<image> and <image>"}, r"a place for 2 image\(s\) and the line has 1"),
        ({"prompt": "look: <|image_pad|>"}, r"a place for 1 image\(s\) and the line has 0"),
        ({"image": "broken.png", "prompt": "what?"}, r"'.*broken\.png' cannot be opened as an image \(Unidentified"),
        ({"image": "cut.png", "prompt": "what?"}, r"'.*cut\.png' cannot be opened as an image \(OSError"),
        ({"image": "line.png", "prompt": "what?"}, r"refused it \(ValueError: .*aspect ratio"),
    ],
)
def test_what_a_line_cannot_be_is_said(
    row: dict[str, object], message: str, reader: calibration.Reader, place: Path
) -> None:
    (place / "broken.png").write_text("no image")
    (place / "cut.png").write_bytes((place / "a.png").read_bytes()[:60])
    Image.new("RGB", (1000, 1)).save(place / "line.png")
    data = calibration.read(checkpoints.lines(place / "x.jsonl", {"prompt": "fine"}, row), reader)
    assert len(data) == 2
    with pytest.raises(CalibrationError, match=r"x\.jsonl, line 2: .*" + message):
        data[1]


def test_lines_need_a_reader_and_a_folder_needs_parts(place: Path, tmp_path: Path) -> None:
    file = checkpoints.lines(place / "x.jsonl", {"prompt": "hello"})
    with pytest.raises(CalibrationError, match=r"are read by the processor of a checkpoint: read\(path, folder\)"):
        calibration.read(file)
    with pytest.raises(CalibrationError, match=r"has neither a tokenizer \(.*\) nor an image processor \(.*copy those"):
        calibration.read(file, tmp_path)


@pytest.mark.parametrize("images", [False, True], ids=["nothing", "images"])
def test_a_tokenizer_that_transformers_made_up_is_none(images: bool, tmp_path: Path) -> None:
    """From the model's type alone it makes one that knows no word: each prompt was zero tokens, without a sound."""
    transformers.AutoConfig.for_model("qwen3_vl").save_pretrained(tmp_path)
    if images:
        checkpoints.processor_files(tmp_path)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (tmp_path / file).unlink()
        reader = calibration.load_reader(tmp_path)
        assert (reader.processor, reader.tokenizer) == (None, None)
        assert reader.image_processor is not None
        with pytest.raises(CalibrationError, match="has no tokenizer, which this line needs"):
            read(reader, tmp_path, prompt="what?")
    else:
        with pytest.raises(CalibrationError, match=r"neither a tokenizer \(it has no tokenizer files\)"):
            calibration.load_reader(tmp_path)
